"""The base of all recommenders: score branches, measure ranks; train, save and load only what is trained.

# U cases, B branches, C candidates
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from datamodules.contract.batch import Batch, BatchFormat, Columns
from datamodules.contract.compat.torch import largest_magnitudes
from datamodules.contract.errors import InputError
from datamodules.contract.findings import Findings
from recmodels.metrics.binary import BinaryMetrics
from recmodels.metrics.ranking import RankingMetrics, pad_branches, user_values
from recmodels.metrics.rating import RatingMetrics, rating_values
from recmodels.optimization import Schedule, grouped_optimizer, learning_rate_factor

OWN_CONFIG = "use its run's own config.yaml"
"""What helps where a checkpoint does not fit."""

Kind = Literal["reference", "untuned", "tuned"]


@dataclass(frozen=True)
class CaseScores(Columns):
    """Scores of one batch, as observers receive them; columns as in `datamodules.contract.batch.Batch`.

    A model that retrieves lists what it found, in place of all candidates; what it did not find counts as a miss.

    Attributes:
        score: `[B]` float32, higher is better.
        candidates: `[U]` number of candidates that were ranked or searched.
        total_relevant: `[U]` number of relevant ones among them.
        answers: `candidates`, `fixed` or `ratings`.
        tokens: real tokens that went through the network; 0 where none did.
        metrics: rank metrics `[U]` of the cases by name, where they have been measured.
        rule: for each case its further rule of candidates, "" for the main one; empty where all follow the main one.
    """

    case: Tensor
    branch_case: Tensor
    branch_item: Tensor
    score: Tensor
    relevance: Tensor
    candidates: Tensor
    total_relevant: Tensor
    answers: str
    tokens: int
    metrics: dict[str, Tensor] = field(default_factory=dict)
    rule: tuple[str, ...] = ()

    def by_rule(self) -> dict[str, CaseScores]:
        """The scores of the cases of each rule, "" for the main one; tokens are told of whole batches only."""
        if not any(self.rule):
            return {"": self}
        return {rule: self._of([each == rule for each in self.rule], rule) for rule in sorted(set(self.rule))}

    def _of(self, cases: list[bool], rule: str) -> CaseScores:
        chosen = torch.tensor(cases, device=self.case.device)
        branch, number = chosen[self.branch_case], chosen.cumsum(0) - 1
        return CaseScores(
            case=self.case[chosen],
            branch_case=number[self.branch_case[branch]],
            branch_item=self.branch_item[branch],
            score=self.score[branch],
            relevance=self.relevance[branch],
            candidates=self.candidates[chosen],
            total_relevant=self.total_relevant[chosen],
            answers=self.answers,
            tokens=0,
            metrics={name: value[chosen.to(value.device)] for name, value in self.metrics.items()},
            rule=(rule,) * int(chosen.sum()) if rule else (),
        )


class NonFiniteError(ArithmeticError):
    """A loss or score became NaN or infinite; the run must not go on."""


class IdentityError(ArithmeticError):
    """A method that promises the untuned scores at its start gives others."""


class Recommender(L.LightningModule, ABC):
    """Anything that scores branches. Subclasses say how; this class measures and optimises.

    Args:
        optimizer: any torch optimiser; only parameters that train are handed to it.
        schedule: of the learning rate after the warm-up: `constant`, or `linear` or `cosine` to zero.
        warmup: share of the steps over which the learning rate rises from zero.
        gradient_clip: largest norm of the gradient; 0 leaves it as it is.
        cutoffs: the k of HR@k and NDCG@k.
    """

    batch_format: ClassVar[BatchFormat]
    """What `forward` reads; the command line links it to the data."""
    kind: ClassVar[Kind] = "tuned"
    """`reference` (no language model), `untuned`, or `tuned`."""
    trains: ClassVar[bool] = True
    """Whether `fit` has anything to do."""
    identity_at_start: bool = False
    """Whether the method promises the untuned backbone's scores before the first step; checked when it is built."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        gradient_clip: float = 1.0,
        cutoffs: Sequence[int] = (1, 3, 5, 10),
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError(f"model.warmup is {warmup}, must be a share of the steps, 0 to below 1")
        try:
            optimizer([nn.Parameter(torch.zeros(1, 1))])
        except (TypeError, ValueError) as error:  # now, rather than after the weights were loaded
            raise InputError(f"model.optimizer: {error}") from error
        self.optimizer, self.schedule, self.warmup = optimizer, schedule, warmup
        self.gradient_clip, self.cutoffs = gradient_clip, tuple(cutoffs)
        alone: dict[str, Any] = {"sync_on_compute": False}  # every process evaluates all cases
        self.validation_ranking, self.test_ranking = RankingMetrics(cutoffs, **alone), RankingMetrics(cutoffs, **alone)
        self.validation_binary, self.test_binary = BinaryMetrics(**alone), BinaryMetrics(**alone)
        self.validation_rating, self.test_rating = RatingMetrics(**alone), RatingMetrics(**alone)
        self.also_ranking: dict[str, RankingMetrics] = {}  # of a test under way, by further rule of candidates
        self.strict_loading = False  # checkpoints hold what was trained; on_load_checkpoint checks the exact set
        self.base_checksum = ""
        self.frozen_blocks: list[list[nn.Parameter]] = []  # what trains, and may be frozen until its turn comes
        self.findings = Findings()

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Returns scores `[B]` of a batch's branches, higher is better."""

    @property
    def attached_trainer(self) -> L.Trainer | None:
        """The trainer, or None where nobody has attached one, which Lightning's own property refuses to say."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def trained(self) -> dict[str, nn.Parameter]:
        """Returns trained parameters by name."""
        frozen = {id(value) for block in self.frozen_blocks for value in block}
        return {name: v for name, v in self.named_parameters() if v.requires_grad or id(v) in frozen}

    def checkpoint_keys(self) -> set[str]:
        """Returns the names in the state dict that a checkpoint keeps: what is trained, and nothing else."""
        return set(self.trained())

    def score(self, batch: Batch) -> Tensor:
        """Returns scores in float32, checked.

        Raises:
            NonFiniteError: a score is NaN or infinite.
        """
        return self.check_scores(self(batch))

    def score_cases(self, batch: Batch) -> CaseScores:
        """Returns scores of all candidates of a batch's cases; a model that retrieves gives those it found."""
        return CaseScores(
            case=batch.case,
            branch_case=batch.branch_case,
            branch_item=batch.branch_item,
            score=self.score(batch).detach(),
            relevance=batch.relevance,
            rule=batch.rule,
            **self.case_totals(batch),
        )

    def scores_without_history(self, data: Any) -> Tensor | None:
        """Returns scores `[I]` of a data module's items for a user of whom nothing is known; None where it has none."""

    @staticmethod
    def case_totals(batch: Batch) -> dict[str, Any]:
        """Returns what `CaseScores` says of whole cases, whatever was scored of them."""
        cases = len(batch.case)
        return {
            "candidates": torch.bincount(batch.branch_case, minlength=cases),
            "total_relevant": torch.bincount(batch.branch_case[batch.relevance > 0], minlength=cases),
            "answers": batch.answers,
            "tokens": getattr(batch, "tokens", 0),
        }

    @staticmethod
    def check_scores(scores: Tensor) -> Tensor:
        """Passes finite scores on, in float32.

        Raises:
            NonFiniteError: a score is NaN or infinite.
        """
        scores = scores.float()
        if not bool(torch.isfinite(scores).all()):
            raise NonFiniteError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
        return scores

    def check_loss(self, loss: Tensor) -> Tensor:
        """Logs a finite loss and passes it on.

        Raises:
            NonFiniteError: the loss is NaN or infinite, named with its step.
        """
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"non-finite loss at step {self.global_step}: {loss.item()}")
        self.log("train/loss", loss.detach(), prog_bar=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures a validation batch."""
        measure_cases(self.score_cases(batch), self.validation_ranking, self.validation_binary, self.validation_rating)

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Measures a test batch and hands its scores to the observers."""
        scored = self.score_cases(batch)
        metrics = measure_cases(scored, self.test_ranking, self.test_binary, self.test_rating, self.also_ranking)
        return replace(scored, metrics=metrics).cpu()

    def predict_step(self, batch: Batch, batch_idx: int) -> CaseScores:
        """Scores a batch."""
        return self.score_cases(batch).cpu()

    def on_validation_epoch_end(self) -> None:
        """Logs validation metrics."""
        self._log_metrics("val", self.validation_ranking, self.validation_binary, self.validation_rating)

    def on_test_epoch_end(self) -> None:
        """Logs test metrics; `quality` is NDCG at the deepest cut-off, AUC, or the negative RMSE.

        Those under a further rule of candidates are named after it: `test/popularity/hr@5`.
        """
        self._log_metrics("test", self.test_ranking, self.test_binary, self.test_rating)
        for rule, ranking in self.also_ranking.items():
            self._log_metrics(f"test/{rule}", ranking, self.test_binary, self.test_rating)
        self.also_ranking = {}

    def _log_metrics(self, stage: str, ranking: RankingMetrics, binary: BinaryMetrics, rating: RatingMetrics) -> None:
        metric = next((metric for metric in (ranking, binary) if metric.update_called), rating)
        if metric.update_called:
            values = metric.compute()  # the same on every process
            self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})
            self.log(f"{stage}/quality", quality_of(values).float())
        for metric in (ranking, binary, rating):
            metric.reset()

    def rates(self) -> dict[str, float]:
        """Learning rates of trained parameters that are not the optimiser's own, as multiples of it, by name."""
        return {}

    def configure_optimizers(self) -> Any:
        """Returns the optimiser over what trains, and its schedule by steps."""
        optimizer = grouped_optimizer(self.optimizer, self.trained(), self.rates())
        steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate_factor(self.schedule, self.warmup, steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm; the trainer's own setting, where given, goes first.

        Raises:
            NonFiniteError: a gradient is NaN or infinite, named with its step.
        """
        if self.trainer.precision != "16-mixed":  # there infinite gradients are expected, and the scaler skips them
            self.check_gradients()
        value = self.gradient_clip if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(
            optimizer, gradient_clip_val=value, gradient_clip_algorithm=gradient_clip_algorithm or "norm"
        )

    def check_gradients(self) -> None:
        """Stops at a gradient that would spoil the weights.

        Raises:
            NonFiniteError: a gradient is NaN or infinite.
        """
        gradients = {name: value.grad for name, value in self.trained().items() if value.grad is not None}
        largest = largest_magnitudes(list(gradients.values())) if gradients else torch.zeros(1)
        if not bool(torch.isfinite(largest).all()):
            name = list(gradients)[int((~torch.isfinite(largest)).nonzero()[0])]
            raise NonFiniteError(f"non-finite gradient at step {self.global_step}: {name}")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Logs the learning rate of the step."""
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def on_train_end(self) -> None:
        """Leaves all that trains unfrozen."""
        for value in self.trained().values():
            value.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what was trained, and the checksum of what it was trained on; no hyper-parameters, no code."""
        keys = self.checkpoint_keys()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in keys}
        checkpoint["instructrec"] = {"model": type(self).__name__, "base_checksum": self.base_checksum}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that is not exactly what this model trains.

        Raises:
            InputError: another model class, another backbone, or other parameters.
        """
        origin = checkpoint.get("instructrec")
        if not origin:
            raise InputError("the checkpoint was not written by instructrec")
        if origin["model"] != type(self).__name__:
            raise InputError(f"the checkpoint is of {origin['model']}, not {type(self).__name__}: {OWN_CONFIG}")
        self.configure_model()
        if origin["base_checksum"] != self.base_checksum:
            raise InputError(
                f"the checkpoint was trained on backbone weights {origin['base_checksum'][:12]},"
                f" the configured backbone is {self.base_checksum[:12]}: {OWN_CONFIG}"
            )
        state = self.state_dict()
        expected = {name: tuple(state[name].shape) for name in self.checkpoint_keys()}
        shapes = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if expected != shapes:
            name, shape = min(set(expected.items()) ^ set(shapes.items()))
            side = "the model" if name in expected and expected[name] == shape else "the checkpoint"
            raise InputError(f"the checkpoint does not fit: {name} {shape} is in {side} only: {OWN_CONFIG}")


def quality_of(values: dict[str, Tensor]) -> Tensor:
    """Returns the one metric that runs are chosen by: NDCG at the deepest cut-off, AUC, or the negative RMSE.

    Example:
        >>> quality_of({"ndcg@5": torch.tensor(0.5), "ndcg@10": torch.tensor(0.75)}).item()
        0.75
    """
    deepest = max((int(name[5:]) for name in values if name.startswith("ndcg@")), default=0)
    main = "auc" if "auc" in values else f"ndcg@{deepest}" if deepest else "mrr"
    return -values["rmse"] if "rmse" in values else values[main]


def measure_cases(
    scored: CaseScores,
    ranking: RankingMetrics,
    binary: BinaryMetrics,
    rating: RatingMetrics,
    also: dict[str, RankingMetrics] | None = None,
) -> dict[str, Tensor]:
    """Adds the cases to the metrics of their rules; `also` holds those of further rules, made as they appear."""
    cases = len(scored.case)
    table, mask = pad_branches(scored.score, scored.branch_case, cases, 0.0)
    relevance, _ = pad_branches(scored.relevance, scored.branch_case, cases, 0.0)
    if scored.answers == "fixed":
        binary.update(table.softmax(dim=1)[:, 0], (relevance[:, 0] > 0).long())
    elif scored.answers == "ratings":
        value, _ = pad_branches(rating_values(scored.branch_item), scored.branch_case, cases, 0.0)
        rating.update((table.softmax(dim=1) * value).sum(1), (relevance * value).sum(1))
    else:
        values = user_values(table, relevance, ranking.cutoffs, mask, scored.total_relevant)
        for rule in sorted(set(scored.rule)) or [""]:
            if rule and also is not None and rule not in also:
                also[rule] = RankingMetrics(ranking.cutoffs, sync_on_compute=False).to(table.device)
            mine = torch.tensor([each == rule for each in scored.rule or [""] * cases], device=table.device)
            (also[rule] if rule and also is not None else ranking).update(
                table[mine],
                relevance[mine],
                mask[mine],
                scored.total_relevant[mine],
                scored.candidates[mine],
                {name: value[mine] for name, value in values.items()},
            )
        return {name: value.cpu() for name, value in values.items()}
    return {}
