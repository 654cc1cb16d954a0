"""Language models that rank by the likelihood of answers; subclasses say what is trained.

# U cases, B branches, L labelled tokens
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datamodules.batch import Batch, BatchFormat, BranchBatch, CatalogueBatch, CatalogueTrie
from datamodules.pretrained import check_backbone_name
from datamodules.sources import InputError
from recmodels.backbone import Backbone, Precision
from recmodels.base import CaseScores, IdentityError, Recommender
from recmodels.beam_search import Retrieved, beam_search
from recmodels.catalogue import catalogue_scores
from recmodels.causal import CausalBackbone
from recmodels.encoder_decoder import load_backbone
from recmodels.objectives import Objective, training_loss
from recmodels.rating import rating_values
from recmodels.training import checksum_parameters


class InstructionRecommender(Recommender):
    """A language model, causal or encoder-decoder, tuned on instructions (InstructRec, arXiv 2305.07001).

    A variant overrides `tune`, which marks what is trained; everything else is frozen.

    Args:
        backbone: packaged name, folder with a Hugging Face model, or hub id `owner/name[@revision]`.
        objective: `likelihood` of the right answer, `listwise` softmax over a case's answers, `yes_no`
            (binary cross-entropy on Yes against No), or `rating` (squared error of the expected one).
        length_normalised: score an answer by its mean log-probability a token instead of the sum.
        dropout: probability for the backbone's dropouts; null leaves the architecture's own.
        retrieval: how a whole catalogue is ranked: `exhaustive` scores every title, `beam` searches the likeliest ones
            token by token and counts the others as missed. Lists of candidates are always scored whole.
        beams: under `beam`, beginnings kept at every token, and titles found; at least the largest cut-off.
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
        retrieval: Literal["exhaustive", "beam"] = "exhaustive",
        beams: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_backbone_name(backbone)
        least = max(self.cutoffs) if retrieval == "beam" else 1
        if beams < least:
            reason = "" if least == 1 else ", the largest of model.cutoffs"
            raise InputError(f"model.beams is {beams}, must be at least {least}{reason}")
        self.retrieval, self.beams = retrieval, beams
        self._trie: CatalogueTrie | None = None
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
        if self.retrieval == "beam":
            _ = self._causal  # refuses before anything is trained
        self.base_checksum = checksum_parameters(self.backbone.model.named_parameters())
        self.backbone.model.requires_grad_(False)
        untuned = self._probe() if self.identity_at_start else None
        self.tune(self.backbone)
        self.network = self.backbone.model.train()  # from_pretrained leaves modules in evaluation mode
        for value in self.trained().values():  # small updates vanish in bfloat16
            value.data = value.data.float()
        if untuned is not None:
            self._check_identity(untuned)

    def _probe(self) -> Tensor:
        with self.trainer.precision_plugin.forward_context() if self._trainer else contextlib.nullcontext():
            return self.backbone.probe()

    def _check_identity(self, untuned: Tensor) -> None:
        difference = float((self._probe() - untuned).abs().max())
        self.findings["step0_score_difference"] = difference
        if not difference <= 1e-5 * max(1.0, float(untuned.abs().max())):
            raise IdentityError(
                f"{type(self).__name__} promises the untuned scores before its first step, and they differ by"
                f" {difference:.3g}"
            )

    def forward(self, batch: BranchBatch | CatalogueBatch) -> Tensor:
        """Scores `[B]`: log-likelihood of each answer under its prompt; of those found, under beam retrieval."""
        if not isinstance(batch, CatalogueBatch):
            return self._rank(self.backbone.log_likelihood(batch), batch)
        return self._retrieve(batch).score if self.retrieval == "beam" else self._score_catalogue(batch)

    def score_cases(self, batch: Batch) -> CaseScores:
        """Scores of a batch's candidates, or of what beam search finds among them."""
        if self.retrieval == "exhaustive" or not isinstance(batch, CatalogueBatch):
            return super().score_cases(batch)
        found = self._retrieve(batch)
        gain = batch.relevance.new_zeros(len(batch.case), len(batch.trie.item))
        gain[batch.branch_case, batch.branch_item] = batch.relevance
        return CaseScores(
            case=batch.case,
            branch_case=found.user,
            branch_item=found.item,
            score=self.check_scores(found.score),
            relevance=gain[found.user, found.item],
            **(self.case_totals(batch) | {"tokens": found.tokens}),
        )

    def _score_catalogue(self, batch: CatalogueBatch) -> Tensor:
        trie = self._on_device(batch)
        scores = catalogue_scores(self._causal, batch.prompt, batch.prompt_length, trie)
        if self.length_normalised:
            scores = scores / (trie.depth[trie.last] + 1)
        return scores[batch.branch_case, batch.branch_item]

    def _retrieve(self, batch: CatalogueBatch) -> Retrieved:
        candidate = torch.zeros(len(batch.case), len(batch.trie.item), dtype=torch.bool, device=batch.case.device)
        candidate[batch.branch_case, batch.branch_item] = True
        return beam_search(
            self._causal,
            batch.prompt,
            batch.prompt_length,
            self._on_device(batch),
            self.beams,
            candidate=candidate,
            length_normalised=self.length_normalised,
        )

    @property
    def _causal(self) -> CausalBackbone:
        if not isinstance(self.backbone, CausalBackbone):
            raise InputError(
                f"backbone {self.backbone_name!r} ({self.backbone.family}) is an encoder-decoder; a catalogue's tree needs"
                " a causal one, use model.retrieval=exhaustive"
            )
        return self.backbone

    def _on_device(self, batch: CatalogueBatch) -> CatalogueTrie:
        """The catalogue's tree on the batch's device, copied there once."""
        device = batch.prompt.device
        if self._trie is None or self._trie.key != batch.trie.key or self._trie.token.device != device:
            self._trie = batch.trie.to(device)
        return self._trie

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
            rating_values(batch.branch_item) if batch.answers == "ratings" else None,
        )
        return self.check_loss(loss)
