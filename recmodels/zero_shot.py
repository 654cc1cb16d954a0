"""The backbone as it is: the row that shows what tuning adds."""

from __future__ import annotations

from typing import ClassVar

from recmodels.backbone import Backbone
from recmodels.base import Kind
from recmodels.instruction import InstructionRecommender


class ZeroShot(InstructionRecommender):
    """Trains nothing; scores with the pretrained backbone."""

    kind: ClassVar[Kind] = "untuned"
    trains: ClassVar[bool] = False

    def tune(self, backbone: Backbone) -> None:
        """Leaves everything frozen."""
