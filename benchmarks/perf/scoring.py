"""Scoring the candidates of some users: one tree a user, against one padded row a candidate.

# U users, C candidates, R rows, N tokens a row, T longest answer, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from benchmarks.perf.measure import Comparison, ComparisonRule, Side, Turn, Values
from benchmarks.perf.setting import Device, Pair, Setting, load_plain, synchronise
from datamodules import MovieLens100K
from datamodules.contract.batch import PromptTreeBatch
from datamodules.instructions.slates import Slate
from datamodules.sources.pretrained import load_tokenizer
from recmodels.backbones.loading import keep_freed_memory
from recmodels.methods.zero_shot import ZeroShot

BATCH_SIZES = (8, 20, 40)
"""Rows a padded batch that are tried; the fastest is used."""


def quiet_trainer(setting: Setting, precision: Any = None, **options: Any) -> L.Trainer:
    """A Lightning trainer that only computes, as `instructrec` runs it; in the run's precision unless told another."""
    keep_freed_memory()
    return L.Trainer(
        accelerator="gpu" if setting.device == "cuda" else "cpu",
        devices=1,
        precision=precision or setting.lightning,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def drawn_users(setting: Setting, candidates: int) -> tuple[MovieLens100K, list[Slate]]:
    """The users to be scored, with 1 + (candidates - 1) items each."""
    data = setting.data("matching", negatives=candidates - 1)
    count = 2 if setting.quick else setting.part(max(1, 80 // candidates))
    cases = setting.draw(range(len(data.cases("test").user)), count)
    return data, [data.slates.evaluation(data.cases("test"), case) for case in cases]


class Trees(Side):
    """Ours: `instructrec test` scores batches of prompt trees so."""

    def __init__(self, setting: Setting, candidates: int) -> None:
        super().__init__(setting)
        data, slates = drawn_users(setting, candidates)
        groups = [
            slates[i : i + data.loader.eval_batch_size] for i in range(0, len(slates), data.loader.eval_batch_size)
        ]
        self.batches = [cast(PromptTreeBatch, data.collator([[slate] for slate in group])) for group in groups]
        self.users = len(slates)
        self.model = ZeroShot(backbone=setting.backbone)
        self.model.trainer = quiet_trainer(setting)
        self.model.configure_model()
        self.model.to(setting.device).eval()
        self.config = {"users_a_batch": data.loader.eval_batch_size, "row_tokens": data.loader.row_tokens}

    def turn(self, repetition: int) -> Turn:
        """Scores all users."""
        with self.model.trainer.precision_plugin.forward_context():
            return timed_scores(self.setting.device, self.users, lambda: [self._score(b) for b in self.batches])

    def exact(self) -> Values:
        """Scores of the first user in float32."""
        self.model.float()
        scores = torch.cat([self._score(batch) for batch in self.batches[:1]])
        return {"score": scores[self.batches[0].branch_case == 0].cpu().numpy()}

    @torch.inference_mode()
    def _score(self, batch: PromptTreeBatch) -> Tensor:
        return self.model.score(batch.to(self.setting.device))


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of like length, padded on the left so that answers end together.

    Attributes:
        token: `[R, N]`.
        attention: `[R, N]`.
        answer: `[R]` tokens of each answer.
        keep: T, the longest of them.
        place: where each row's score goes.
    """

    token: Tensor
    attention: Tensor
    answer: Tensor
    keep: int
    place: list[int]


def pad_batches(pairs: Sequence[Pair], size: int, pad: int) -> list[PaddedBatch]:
    """Sorts sequences by length and pads every `size` of them to the longest."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    batches = []
    for begin in range(0, len(order), size):
        place = order[begin : begin + size]
        rows = [[*pairs[i][0], *pairs[i][1]] for i in place]
        width = len(rows[0])
        answer = torch.tensor([len(pairs[i][1]) for i in place])
        batches.append(
            PaddedBatch(
                token=torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
                attention=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
                answer=answer,
                keep=int(answer.max()),
                place=place,
            )
        )
    return batches


@torch.inference_mode()
def score_padded(model: Any, batch: PaddedBatch, device: Device) -> Tensor:
    """Log-likelihood `[R]` of each row's answer, with logits at the last T + 1 places only."""
    token, attention = batch.token.to(device), batch.attention.to(device)
    position = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=token,
        attention_mask=attention,
        position_ids=position,
        use_cache=False,
        logits_to_keep=batch.keep + 1,
    ).logits[:, :-1]  # [R, T, V]
    logits = logits.float()
    label = token[:, -batch.keep :]
    log_probability = logits.gather(-1, label[..., None])[..., 0] - logits.logsumexp(-1)
    answered = torch.arange(batch.keep, device=device) >= batch.keep - batch.answer.to(device)[:, None]
    scores: Tensor = (log_probability * answered).sum(1)
    return scores


class Padded(Side):
    """The usual way: every candidate a row with its own copy of the prompt."""

    def __init__(self, setting: Setting, candidates: int) -> None:
        super().__init__(setting)
        data, slates = drawn_users(setting, candidates)
        encoded = data.collator.slates.encode(slates)  # type: ignore[union-attr]
        self.pairs = [(list(m.prompt), list(answer)) for m in encoded for answer in m.answers]
        self.users, self.candidates = len(slates), candidates
        self.model = load_plain(setting).eval()
        self.pad = int(load_tokenizer(setting.backbone).pad_token_id)

    def prepare(self) -> None:
        """Chooses the batch size that scores some candidates fastest."""
        pairs = self.pairs[: max(BATCH_SIZES)]
        self._scores(pad_batches(pairs[: BATCH_SIZES[0]], BATCH_SIZES[0], self.pad))  # warms up
        tried = {}
        for size in BATCH_SIZES:
            batches = pad_batches(pairs, size, self.pad)
            tried[size] = timed_scores(self.setting.device, 1, partial(self._scores, batches)).seconds
        best = min(tried, key=lambda size: tried[size])
        self.batches = pad_batches(self.pairs, best, self.pad)
        self.config = {
            "rows_a_batch": best,
            "tried_seconds": tried,
            "attention": "sdpa",
            "padding": "left, sorted by length",
            "logits": "last places only (logits_to_keep)",
        }

    def turn(self, repetition: int) -> Turn:
        """Scores all users."""
        turn = timed_scores(self.setting.device, self.users, lambda: self._scores(self.batches))
        return Turn(turn.seconds, turn.count, {"score": self._in_order(self.batches, turn.values["score"])})

    def exact(self) -> Values:
        """Scores of the first user in float32."""
        self.model.float()
        batches = pad_batches(self.pairs[: self.candidates], BATCH_SIZES[0], self.pad)
        return {"score": self._in_order(batches, torch.cat(self._scores(batches)).cpu().numpy())}

    def _scores(self, batches: Sequence[PaddedBatch]) -> list[Tensor]:
        return [score_padded(self.model, batch, self.setting.device) for batch in batches]

    @staticmethod
    def _in_order(batches: Sequence[PaddedBatch], scores: Any) -> Any:
        ordered = scores.copy()
        ordered[[place for batch in batches for place in batch.place]] = scores
        return ordered


def timed_scores(device: Device, units: float, work: Callable[[], Sequence[Tensor]]) -> Turn:
    """One turn of scoring, clocked until the device is done."""
    synchronise(device)
    began = time.perf_counter()
    scores = work()
    synchronise(device)
    seconds = time.perf_counter() - began
    return Turn(seconds, units, {"score": torch.cat(list(scores)).float().cpu().numpy()})


def comparison(name: str, candidates: int, target: float) -> Comparison:
    """Scoring one right item and `candidates - 1` others."""
    return Comparison(
        name=name,
        title=f"scoring 1 + {candidates - 1} candidates a user",
        unit="users",
        sides={"trees": partial(Trees, candidates=candidates), "padded": partial(Padded, candidates=candidates)},
        targets={"padded": target},
        rules=[ComparisonRule("log-likelihoods", "score", "typical", tolerance=0.7, exact_tolerance=1e-4)],
    )
