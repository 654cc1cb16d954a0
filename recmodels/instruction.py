"""Language models that rank by the likelihood of answers; subclasses say what is trained.

# U cases, B branches, L labelled tokens
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.batch import BatchFormat, BranchBatch
from datamodules.pretrained import check_backbone_name
from recmodels.backbone import Backbone, Precision
from recmodels.base import Recommender
from recmodels.encoder_decoder import load_backbone
from recmodels.objectives import Objective, training_loss
from recmodels.training import checksum_parameters


class InstructionRecommender(Recommender):
    """A language model, causal or encoder-decoder, tuned on instructions (InstructRec, arXiv 2305.07001).

    A variant overrides `tune`, which marks what is trained; everything else is frozen.

    Args:
        backbone: packaged name, folder with a Hugging Face model, or hub id `owner/name[@revision]`.
        objective: `likelihood` of the right answer, `listwise` softmax over a case's answers, or `yes_no`
            (binary cross-entropy on Yes against No).
        length_normalised: score an answer by its mean log-probability a token instead of the sum.
        dropout: probability for the backbone's dropouts; null leaves the architecture's own.
        **kwargs: of `Recommender`.
    """

    batch_format: ClassVar[BatchFormat] = "prompt_tree"
    trains_backbone: ClassVar[bool] = False
    """Whether backbone weights themselves train, and so must be kept in float32."""

    def __init__(
        self,
        backbone: str = "smollm2-135m-instruct",
        objective: Objective = "likelihood",
        length_normalised: bool = False,
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_backbone_name(backbone)
        self.backbone_name, self.objective = backbone, objective
        self.length_normalised, self.dropout = length_normalised, dropout
        self.network: torch.nn.Module | None = None

    @abstractmethod
    def tune(self, backbone: Backbone) -> None:
        """Makes trainable what this variant trains; the whole backbone arrives frozen."""

    def configure_model(self) -> None:
        """Loads the backbone once and applies the variant."""
        if self.network is not None:
            return
        mixed = self._trainer is not None and str(self._trainer.precision).startswith("bf16")
        precision: Precision = "bfloat16" if mixed and not self.trains_backbone else "float32"
        self.backbone = load_backbone(self.backbone_name, precision, self.dropout)
        self.base_checksum = checksum_parameters(self.backbone.model.named_parameters())
        self.backbone.model.requires_grad_(False)
        self.tune(self.backbone)
        self.network = self.backbone.model.train()  # from_pretrained leaves modules in evaluation mode
        for value in self.trained().values():  # small updates vanish in bfloat16
            value.data = value.data.float()

    def forward(self, batch: BranchBatch) -> Tensor:
        """Scores `[B]`: log-likelihood of each answer under its prompt."""
        return self._rank(self.backbone.log_likelihood(batch), batch)

    def _rank(self, log_likelihood: Tensor, batch: BranchBatch) -> Tensor:
        return log_likelihood / self._length(batch) if self.length_normalised else log_likelihood

    @staticmethod
    def _length(batch: BranchBatch) -> Tensor:
        return torch.bincount(batch.label_branch, minlength=len(batch.branch_case))

    def training_step(self, batch: BranchBatch, batch_idx: int) -> Tensor:
        """The objective's loss on a batch of windows."""
        log_likelihood = self.backbone.log_likelihood(batch)
        loss = training_loss(
            self.objective,
            log_likelihood,
            self._rank(log_likelihood, batch),
            self._length(batch),
            batch.relevance,
            batch.branch_case,
        )
        return self.check_loss(loss)
