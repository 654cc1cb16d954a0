"""The backbone as it is: the row that shows what tuning adds."""

from __future__ import annotations

from typing import Any, ClassVar

from datamodules.contract.errors import InputError
from recmodels.backbones.base import Backbone
from recmodels.base import Kind
from recmodels.methods.base import InstructionRecommender


class ZeroShot(InstructionRecommender):
    """Trains nothing; scores with the pretrained backbone, after demonstrations where there are any.

    Args:
        shots: solved cases of training users that every prompt begins with, drawn once by the data's seed (in-context
            learning, Brown et al. 2020, arXiv 2005.14165); 0 shows none.
        **kwargs: of `InstructionRecommender`.
    """

    kind: ClassVar[Kind] = "untuned"
    trains: ClassVar[bool] = False
    identity_at_start = True

    def __init__(self, shots: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if shots < 0:
            raise InputError(f"model.shots is {shots}, must be at least 0")
        self.shots = shots

    def tune(self, backbone: Backbone) -> None:
        """Leaves everything frozen."""
