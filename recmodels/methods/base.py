"""Language models that rank by the likelihood of answers; subclasses say what is trained.

# U cases, B branches, L labelled tokens
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
from peft import PeftConfig
from torch import Tensor

from datamodules.contract.batch import Batch, BatchFormat, BranchBatch, CatalogueBatch, CatalogueTrie
from datamodules.contract.checkpoints import checksum_parameters
from datamodules.contract.errors import InputError
from datamodules.contract.items import ItemTokens, items_record, items_to_load
from datamodules.sources.pretrained import check_backbone_name
from recmodels.backbones.base import Backbone, Precision
from recmodels.backbones.encoder_decoder import load_backbone
from recmodels.backbones.loading import checkpoint_blocks, draw_weights
from recmodels.backbones.quantization import Quantization, check_quantization
from recmodels.base import CaseScores, Recommender
from recmodels.layers.reference import Reference
from recmodels.methods.budget import keep_to_budget, parse_budget
from recmodels.methods.export import TOLERANCE, adapter_parts, merged
from recmodels.methods.scoring import (
    DataKnown,
    Scoring,
    answer_scores,
    check_dropout,
    check_r_drop,
    known_of,
    predictor,
    scoring_of,
    title_scores,
    token_scores,
    training_loss,
)
from recmodels.methods.start import StartingWeights, earlier_run, identity_difference
from recmodels.objectives import ObjectiveName, objective_named
from recmodels.objectives.base import Objective
from recmodels.retrieval.beam_search import Retrieved
from recmodels.retrieval.scorer import (
    as_causal,
    check_beams,
    retrieve,
    retrieved_cases,
    score_catalogue,
    trie_on_device,
)


class InstructionRecommender(Recommender):
    """A language model, causal or encoder-decoder, tuned on instructions (InstructRec, arXiv 2305.07001).

    A variant overrides `tune`, which marks what is trained; everything else is frozen.

    Args:
        backbone: packaged name, folder with a Hugging Face model, GGUF file, or hub id `owner/name[@revision]`.
        objective: what is minimised: a class of `recmodels.objectives`, with its options, or one of their old names
            `likelihood`, `listwise`, `yes_no`, `rating`.
        scoring: score of an answer: the `sum` of its tokens' log-probabilities, their `mean`, or the sum among the tokens
            with which a title of the `catalogue` can go on (D3, arXiv 2406.14900); null is `sum`.
        length_normalised: the older spelling of `scoring: mean`.
        dropout: probability for the backbone's dropouts; null leaves the architecture's own.
        retrieval: how a whole catalogue is ranked: `exhaustive` scores every title, `beam` searches the likeliest ones
            token by token and counts the others as missed. Lists of candidates are always scored whole.
        beams: under `beam`, beginnings kept at every token, and titles found; at least the largest cut-off.
        budget: share of the backbone's parameters to train, such as `0.1%`, in place of the method's own size (rank,
            bottleneck, prefix length): the size nearest to it is taken, and what it trains is recorded.
        gradient_checkpointing: compute blocks again for the gradient: slower, less memory, the same numbers.
        quantization: `4bit` holds the frozen backbone's linear layers as NF4 (QLoRA); null leaves them in full.
        item_rate: learning rate of items' vectors, where items are tokens, as a multiple of the optimiser's own.
        weights: `pretrained`, or `random`: the same architecture, drawn anew, to tell what pretraining is worth.
        init_from: an earlier run to start from, its folder or a checkpoint: of the same method with the same options, or
            of FullTuning, whose weights any method then tunes further; the optimiser is new.
        r_drop: weight of the divergence of two passes with other dropout, in training (R-Drop, Liang et al. 2021, arXiv
            2106.14448); twice the cost, and 0 is one pass.
        **kwargs: of `Recommender`.
    """

    batch_format: ClassVar[BatchFormat] = "prompt_tree"
    trains_backbone: bool = False
    """Whether backbone weights themselves train, and so must be kept in float32."""
    size_field: ClassVar[str] = ""
    """The attribute that a budget sets; a method without one has no size."""

    def __init__(
        self,
        backbone: str = "smollm2-135m-instruct",
        objective: Objective | ObjectiveName = "likelihood",  # its own mistakes are told: the class is first
        scoring: Scoring | None = None,
        length_normalised: bool = False,
        dropout: float | None = None,
        retrieval: Literal["exhaustive", "beam"] = "exhaustive",
        beams: int = 20,
        budget: str | None = None,
        gradient_checkpointing: bool = False,
        quantization: Quantization | None = None,
        item_rate: float = 1.0,
        weights: Literal["pretrained", "random"] = "pretrained",
        init_from: str | None = None,
        r_drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not item_rate > 0:
            raise InputError(f"model.item_rate is {item_rate}, must be above 0")
        self.item_rate, self.init_from = item_rate, init_from
        self.item_tokens: ItemTokens | None = None  # of the data, or of a checkpoint
        self.gradient_checkpointing, self.quantization = gradient_checkpointing, quantization
        self.weights, self.r_drop = weights, check_r_drop(r_drop)
        if quantization:
            check_quantization(type(self).__name__, self.trains_backbone, weights)
        self.budget = None if budget is None else parse_budget(budget)
        if self.budget is not None and not self.size_field:
            raise InputError(f"model.budget: {type(self).__name__} has no size that a budget could set; leave it out")
        check_backbone_name(backbone)
        check_beams(beams, self.cutoffs if retrieval == "beam" else ())
        self.retrieval, self.beams, self.dropout = retrieval, beams, dropout
        self.scoring = scoring_of(scoring, length_normalised, retrieval)
        self.known = DataKnown()  # what scores or the objective read of the data
        self._trie: CatalogueTrie | None = None
        self.backbone_name, self.objective = backbone, objective_named(objective)
        self._start: StartingWeights | None = None  # what preferences are compared with
        self.network: torch.nn.Module | None = None
        self._tuner: Reference[Any] = Reference(None)  # PEFT's, over the backbone

    @abstractmethod
    def tune(self, backbone: Backbone) -> None:
        """Makes trainable what this variant trains; the whole backbone arrives frozen."""

    def prepare_backbone(self, backbone: Backbone) -> None:
        """Puts in what the method stands on, and does not train; most stand on the backbone alone."""

    def size(self, given: int | None, default: int) -> int:
        """Returns the method's size where no budget sets it.

        Raises:
            InputError: both are given, or the size is below 1.
        """
        if given is not None and self.budget is not None:
            raise InputError(f"model.budget and model.{self.size_field} both set the size; leave one of them out")
        if given is not None and given < 1:
            raise InputError(f"model.{self.size_field} is {given}, must be at least 1")
        return default if given is None else given

    def resize(self, size: int) -> None:
        """Takes the size that a budget gives."""
        setattr(self, self.size_field, size)

    def apply_to(self, backbone: Backbone) -> None:
        """Freezes a backbone and tunes it within the budget; what trains is float32 afterwards.

        Raises:
            InputError: the method does not fit the backbone.
        """
        backbone.model.requires_grad_(False)
        if self.budget is not None:
            self.findings |= keep_to_budget(self.budget, backbone, self.resize, self.tune)
        self.tune(backbone)
        if self.gradient_checkpointing:
            checkpoint_blocks(backbone)
        for value in backbone.model.parameters():  # small updates vanish in bfloat16
            if value.requires_grad:
                value.data = value.data.float()

    def configure_model(self) -> None:
        """Loads the backbone once and applies the variant."""
        if self.network is not None:
            return
        trainer = self.attached_trainer
        training = trainer is None or trainer.training
        earlier = earlier_run(self.init_from, type(self).__name__, needed=training)
        mixed = trainer is not None and str(trainer.precision).startswith("bf16")
        precision: Precision = "bfloat16" if mixed and not self.trains_backbone else "float32"
        self.backbone = load_backbone(self.backbone_name, precision, self.dropout, self.quantization)
        if self.weights == "random":
            draw_weights(self.backbone)
        if self.retrieval == "beam":
            as_causal(self.backbone)  # refuses before anything is trained
        if earlier is not None and earlier.is_below:
            earlier.put_below(self.backbone)
        self.base_checksum = checksum_parameters(self.backbone.model.named_parameters())
        self.prepare_backbone(self.backbone)
        untuned = self._probe() if self.identity_at_start else None
        self.apply_to(self.backbone)
        if self.item_tokens is not None:
            self.findings["item_parameters"] = self.backbone.add_items(self.item_tokens, self.trains)
        self.network = self.backbone.model.train()  # from_pretrained leaves modules in evaluation mode
        if self.r_drop:
            check_dropout(self.network)
        if untuned is not None:
            difference = identity_difference(type(self).__name__, self._probe(), untuned)
            self.findings["step0_score_difference"] = difference
        if earlier is not None:
            self.findings["lineage"] = earlier.put_into(self)
        if self.objective.needs_reference and training:
            self._start = StartingWeights(self.trained())

    def setup(self, stage: str) -> None:
        """Takes the data's items, where they are tokens, and its catalogue; the trainer has set the data up by now."""
        data = cast(Any, self.trainer).datamodule
        self.item_tokens = getattr(data, "item_tokens", None) or self.item_tokens
        # After a fit, its costs are measured on a training batch once more.
        self.known = self.known.and_then(known_of(data, self.scoring, self.objective if stage == "fit" else None))

    def checkpoint_keys(self) -> set[str]:
        """What is trained, and the items' vectors in any case."""
        return super().checkpoint_keys() | set(self.item_tables())

    def rates(self) -> dict[str, float]:
        """The items' own learning rate."""
        return super().rates() | dict.fromkeys(self.item_tables(), self.item_rate)

    def item_tables(self) -> dict[str, torch.nn.Parameter]:
        """Vectors of items by name, where they are tokens."""
        return {} if self.network is None else self.backbone.item_parameters("network")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps which items have vectors beside what was trained, and which runs led here."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructrec"] |= items_record(self.item_tokens)
        if "lineage" in self.findings:
            checkpoint["instructrec"]["lineage"] = self.findings["lineage"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes room for the items' vectors that a checkpoint holds."""
        origin = checkpoint.get("instructrec") or {}
        self.item_tokens = items_to_load(self.item_tokens, origin)
        super().on_load_checkpoint(checkpoint)
        if "lineage" in origin:
            self.findings["lineage"] = origin["lineage"]

    def merged_model(self, tolerance: float = TOLERANCE) -> Any:
        """Returns a transformers model of the backbone's own layout whose scores are within a relative tolerance.

        Raises:
            InputError: the method has no such form.
        """
        tuner = self._peft_tuner("cannot be merged into the backbone")
        return merged(self.backbone, tuner, tolerance)

    def peft_parts(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Returns what a PEFT adapter folder holds: the configuration, and the tensors by name.

        Raises:
            InputError: the method is none of PEFT's.
        """
        tuner = self._peft_tuner("has no PEFT adapter")
        return adapter_parts(self.backbone, tuner)

    def _peft_tuner(self, otherwise: str) -> Any:
        self.configure_model()
        if self.item_tokens is not None:
            raise InputError(f"data.items Token: a model with vectors of items {otherwise}; use its checkpoint")
        if self._tuner.module is None:
            raise InputError(f"{type(self).__name__} {otherwise}: it is no method of PEFT")
        return self._tuner.module

    def _probe(self) -> Tensor:
        # A method that splits weights up gives them back in float32 only, so there the probe knows no autocast.
        trainer = None if self.trains_backbone else self.attached_trainer
        with contextlib.nullcontext() if trainer is None else trainer.precision_plugin.forward_context():
            return self.backbone.probe()

    def forward(self, batch: BranchBatch | CatalogueBatch) -> Tensor:
        """Scores `[B]`: log-likelihood of each answer under its prompt; of those found, under beam retrieval."""
        if isinstance(batch, CatalogueBatch):
            if self.retrieval == "beam":
                return self._retrieve(batch).score
            self._trie = trie_on_device(batch, self._trie)
            return score_catalogue(self.backbone, batch, self._trie, self.scoring)
        reads: Any = "probabilities" if self.scoring == "catalogue" else None
        self.known = self.known.on(batch.branch_case.device)
        tokens = token_scores(predictor(self.backbone, batch), batch, self.known.trie, reads)
        return answer_scores(tokens, len(batch.branch_case), self.scoring)

    def score_cases(self, batch: Batch) -> CaseScores:
        """Returns scores of a batch's candidates, or of what beam search finds among them."""
        if self.retrieval == "exhaustive" or not isinstance(batch, CatalogueBatch):
            return super().score_cases(batch)
        return retrieved_cases(batch, self._retrieve(batch))

    def scores_without_history(self, data: Any) -> Tensor | None:
        """Returns scores `[I]` of a data module's titles behind a prompt that tells no history, if it has such a one."""
        return title_scores(self.backbone, data, self.scoring)

    def _retrieve(self, batch: CatalogueBatch) -> Retrieved:
        self._trie = trie_on_device(batch, self._trie)
        return retrieve(self.backbone, batch, self._trie, self.beams, length_normalised=self.scoring == "mean")

    def training_step(self, batch: BranchBatch, batch_idx: int) -> Tensor:
        """Returns the objective's loss on a batch of windows."""
        start = self._start
        before = None if start is None else start.log_likelihood(self.backbone, batch, self.trained())
        self.known = self.known.on(batch.branch_case.device)
        given = self.objective, self.scoring, self.known, before, self.r_drop
        loss, observed = training_loss(self.backbone, batch, *given)
        for name, value in observed.items():
            self.log(f"train/{name}", value)
        return self.check_loss(loss)
