"""The classic BERT baseline: every token of a recommended candidate is tagged RECOMMEND, all others O.

# R rows, N tokens a row, B branches
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from datamodules.contract.batch import BatchFormat, TaggedTextBatch
from datamodules.contract.checkpoints import checksum_parameters
from datamodules.contract.errors import InputError
from datamodules.sources.pretrained import check_backbone_name
from recmodels.backbones.encoder import load_encoder
from recmodels.base import OWN_CONFIG, Recommender
from recmodels.layers.reference import Reference
from recmodels.methods.base import InstructionRecommender
from recmodels.methods.full import FullTuning
from recmodels.methods.partial import PartialTuning
from recmodels.methods.start import identity_difference
from recmodels.objectives import Likelihood

TAGS = ("O", "RECOMMEND")


class TunedEncoder(Recommender):
    """An encoder that one of the tuning methods tunes, below a head that always trains.

    Args:
        backbone: packaged name, folder with a Hugging Face encoder, or hub id.
        dropout: probability for the backbone's dropouts; null leaves the architecture's own.
        tuning: how the encoder is tuned: a tuning method with its own options, such as `{class_path: LoRATuning,
            init_args: {r: 8}}`; null trains all of it. What a method takes of the run (backbone, optimizer, ...) is
            said here, not there; `PartialTuning` with `part: head` trains the head alone.
        **kwargs: of `Recommender`.
    """

    def __init__(
        self,
        backbone: str = "all-minilm-l6-v2",
        dropout: float | None = None,
        tuning: InstructionRecommender | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_backbone_name(backbone)
        self.backbone_name, self.dropout = backbone, dropout
        # Its parameters are the encoder's.
        self._tuning = Reference(FullTuning() if tuning is None else check_tuning(tuning))
        self.network: nn.Module | None = None

    @abstractmethod
    def add_head(self, config: Any) -> None:
        """Makes the head, of a width that the encoder's configuration says."""

    def configure_model(self) -> None:
        """Loads the encoder once, with a fresh head."""
        if self.network is not None:
            return
        self.encoder = load_encoder(self.backbone_name, self.dropout)
        self.base_checksum = checksum_parameters(self.encoder.model.named_parameters())
        tuning = self._tuning.module
        untuned = self.encoder.probe() if tuning.identity_at_start else None
        tuning.apply_to(self.encoder)
        self.frozen_blocks = tuning.frozen_blocks
        if untuned is not None:
            difference = identity_difference(type(tuning).__name__, self.encoder.probe(), untuned)
            self.findings["step0_score_difference"] = difference
        self.findings |= tuning.findings
        self.add_head(self.encoder.model.config)
        self.network = self.encoder.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Freezes the blocks whose turn has not come, where a method unfreezes one after another."""
        if isinstance(self._tuning.module, PartialTuning):
            self._tuning.module.update_frozen(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sum of what the tuning method drew and does not train, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructrec"]["drawn"] = getattr(self._tuning.module, "drawn", "")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint whose frozen random part is another.

        Raises:
            InputError: it was made with another seed.
        """
        super().on_load_checkpoint(checkpoint)
        mine = getattr(self._tuning.module, "drawn", "")
        if checkpoint["instructrec"].get("drawn", mine) != mine:  # older ones do not tell
            raise InputError(f"the checkpoint's tuning drew other frozen values; {OWN_CONFIG} and seed_everything")


class TokenClassification(TunedEncoder):
    """Sequence tagging with a bidirectional encoder (Devlin et al. 2019, arXiv 1810.04805).

    History and candidate titles are one text, several texts are packed into a row; the loss is the cross-entropy of
    the tags of all tokens; the score of a candidate is the mean RECOMMEND log-odds of its tokens.

    Args:
        **kwargs: of `TunedEncoder`.
    """

    batch_format: ClassVar[BatchFormat] = "tagged_text"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.confusion = MulticlassConfusionMatrix(num_classes=len(TAGS), sync_on_compute=False)

    def add_head(self, config: Any) -> None:
        """Makes the tagger."""
        self.tagger = nn.Linear(config.hidden_size, len(TAGS))
        self.head_dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0))

    def tag_logits(self, batch: TaggedTextBatch) -> Tensor:
        """Returns logits `[R, N, 2]` of the tags O and RECOMMEND."""
        states = self.encoder.hidden_states(batch.token, batch.segment, batch.position, batch.attention)
        return cast(Tensor, self.tagger(self.head_dropout(states)).float())

    @staticmethod
    def tags(batch: TaggedTextBatch) -> Tensor:
        """Returns true tags `[R, N]`; -100 at padding."""
        inside = batch.branch >= 0
        tag = torch.where(inside, (batch.relevance[batch.branch.clamp(min=0)] > 0).long(), 0)
        return torch.where(batch.attention, tag, -100)

    def forward(self, batch: TaggedTextBatch) -> Tensor:
        """Returns scores `[B]`: mean RECOMMEND log-odds over each candidate's tokens."""
        return self._scores(self.tag_logits(batch), batch)

    @staticmethod
    def _scores(logits: Tensor, batch: TaggedTextBatch) -> Tensor:
        inside = batch.branch >= 0
        odds, branch = (logits[..., 1] - logits[..., 0])[inside], batch.branch[inside]
        branches = len(batch.branch_case)
        total = odds.new_zeros(branches).index_add(0, branch, odds)
        return total / torch.bincount(branch, minlength=branches)

    def training_step(self, batch: TaggedTextBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the tags."""
        logits = self.tag_logits(batch)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self.tags(batch).flatten(), ignore_index=-100)
        return self.check_loss(loss)

    def score(self, batch: TaggedTextBatch) -> Tensor:  # type: ignore[override]  # this model reads tagged texts only
        """Scores, with the tags counted for the classification report."""
        logits = self.tag_logits(batch)
        counted = batch.attention & ~under_further_rules(batch)
        self.confusion.update(logits[counted].argmax(-1), self.tags(batch)[counted])
        return self.check_scores(self._scores(logits, batch))

    def on_validation_epoch_end(self) -> None:
        """Logs ranks and the report by tag."""
        super().on_validation_epoch_end()
        self._log_report("val")

    def on_test_epoch_end(self) -> None:
        """Logs ranks and the report by tag."""
        super().on_test_epoch_end()
        self._log_report("test")

    def _log_report(self, stage: str) -> None:
        report = classification_report(self.confusion.compute())
        self.log_dict({f"{stage}/tag_{name}": value for name, value in report.items()})
        self.confusion.reset()


def check_tuning(tuning: InstructionRecommender) -> InstructionRecommender:
    """Passes a tuning method on that has no training step of its own.

    Raises:
        InputError: it tunes nothing, wants four bits, stands on or starts from another run, has an objective, or trains in a way that
            a tagger's loop does not.
    """
    name = type(tuning).__name__
    if not tuning.trains:
        raise InputError(
            f"model.tuning is {name}, which trains nothing; PartialTuning with part=head trains the tagger"
        )
    if tuning.quantization:
        raise InputError("model.tuning.quantization is '4bit', which encoders are too small to need; leave it out")
    if getattr(tuning, "stack_on", None) is not None:
        raise InputError(
            "model.tuning.stack_on is set, and a tagger's adapters stand on its encoder only; leave it out"
        )
    if tuning.init_from is not None:
        raise InputError("model.tuning.init_from is set, and a tagger starts from its encoder; leave it out")
    if tuning.r_drop:
        raise InputError("model.tuning.r_drop is set, and a tagger's loop makes one pass; leave it out")
    if type(tuning.objective) is not Likelihood:
        chosen = type(tuning.objective).__name__
        raise InputError(f"model.tuning.objective is {chosen}, and a tagger has a loss of its own; leave it out")
    steps = [step for step in ("training_step", "optimizer_step") if step in vars(type(tuning))]
    if steps:
        raise InputError(
            f"model.tuning is {name}, which has a {steps[0]} of its own; use LoRATuning, or it as the model"
        )
    return tuning


def under_further_rules(batch: TaggedTextBatch) -> Tensor:
    """`[R, N]` whether a token is of a text whose candidates follow a rule of `protocol.also`."""
    further = torch.tensor([bool(rule) for rule in batch.rule or ("",) * len(batch.case)])
    of_branch = further.to(batch.branch.device)[batch.branch_case]
    row, column = ((batch.branch >= 0) & of_branch[batch.branch.clamp(min=0)]).nonzero(as_tuple=True)
    marked = torch.zeros(len(batch.branch), int(batch.segment.max()) + 1, dtype=torch.bool, device=row.device)
    marked[row, batch.segment[row, column]] = True
    return marked.gather(1, batch.segment)


def classification_report(confusion: Tensor) -> dict[str, float]:
    """Returns precision, recall, F1 and support by `<tag>_<measure>`; 0 where a denominator is 0, as in scikit-learn.

    Example:
        >>> classification_report(torch.tensor([[90, 2], [6, 2]]))["recommend_recall"]
        0.25
    """
    report = {}
    for number, tag in enumerate(TAGS):
        hits = float(confusion[number, number])
        support, predicted = float(confusion[number].sum()), float(confusion[:, number].sum())
        precision, recall = hits / predicted if predicted else 0.0, hits / support if support else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        for name, value in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
            report[f"{tag.lower()}_{name}"] = value
    return report
