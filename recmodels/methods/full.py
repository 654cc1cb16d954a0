"""Full fine-tuning: every parameter of the backbone."""

from __future__ import annotations

from recmodels.backbones.base import Backbone
from recmodels.methods.base import InstructionRecommender


class FullTuning(InstructionRecommender):
    """Trains every parameter of the backbone, embeddings included, as InstructRec does (arXiv 2305.07001)."""

    trains_backbone = True
    identity_at_start = True

    def tune(self, backbone: Backbone) -> None:
        """Unfreezes everything."""
        backbone.model.requires_grad_(True)
