"""The whole catalogue under a user's prompt: exact scores of all titles, and the best of them by constrained beams.

# U users, I items, S longest prompt, R rows
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import cast

import torch
from torch import Tensor

from benchmarks.perf.measure import Comparison, ComparisonRule, Side, Turn, Values
from benchmarks.perf.scoring import BATCH_SIZES, pad_batches, quiet_trainer, score_padded, timed_scores
from benchmarks.perf.setting import Setting, load_plain
from datamodules.batching.catalogue import build_trie, catalogue_answers
from datamodules.sources.pretrained import load_tokenizer
from recmodels.backbones.causal import CausalBackbone
from recmodels.methods.zero_shot import ZeroShot
from recmodels.retrieval.beam_search import beam_search
from recmodels.retrieval.exhaustive import catalogue_scores

BEAMS = 20


class CatalogueSide(Side):
    """Prompts of some users and the titles' answers; a subclass ranks them."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting)
        data = setting.data("matching")
        cases = setting.draw(range(len(data.cases("test").user)), setting.part(users))
        slates = [data.slates.evaluation(data.cases("test"), case) for case in cases]
        encoded = data.collator.slates.encode(slates)  # type: ignore[union-attr]
        self.prompts = [list(made.prompt) for made in encoded]
        self.answers = catalogue_answers(data.collator.slates)  # type: ignore[union-attr]
        self.pad = int(load_tokenizer(setting.backbone).pad_token_id)
        # Items of one title are one answer, and cannot be told apart by generation.
        self.title = {tuple(answer): item for item, answer in reversed(list(enumerate(self.answers)))}

    @abstractmethod
    def scored(self, prompts: list[list[int]]) -> list[Tensor]:
        """What the side computes for some prompts, one row of values a user."""

    def turn(self, repetition: int) -> Turn:
        """Serves all users."""
        turn = timed_scores(self.setting.device, self.units(), lambda: self.scored(self.prompts))
        return Turn(turn.seconds, turn.count, {"score": turn.values["score"].reshape(len(self.prompts), -1)})

    def units(self) -> float:
        """Units of work in a turn."""
        return len(self.prompts)

    def exact(self) -> Values:
        """What the first user gets in float32."""
        self.to_float()
        return {"score": torch.stack(self.scored(self.prompts[:1])).float().cpu().numpy()}

    @abstractmethod
    def to_float(self) -> None:
        """Turns the weights into float32."""

    def left_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids `[U, S]` and lengths `[U]`."""
        width = max(map(len, prompts))
        token = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts])
        length = torch.tensor([len(prompt) for prompt in prompts])
        return token.to(self.setting.device), length.to(self.setting.device)


class OurCatalogueSide(CatalogueSide):
    """Our model and the tree of titles."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting, users)
        self.trie = build_trie(self.answers).to(setting.device)
        self.model = ZeroShot(backbone=setting.backbone)
        self.model.trainer = quiet_trainer(setting)
        self.model.configure_model()
        self.model.to(setting.device).eval()
        self.context = self.model.trainer.precision_plugin.forward_context

    def to_float(self) -> None:
        """Turns the weights into float32, and autocast off."""
        self.model.float()
        self.context = quiet_trainer(self.setting, "32-true").precision_plugin.forward_context


def compared_items(setting: Setting, items: int) -> list[int]:
    """The titles that the padded side scores, drawn by the seed."""
    return setting.draw(range(items), 10 if setting.quick else setting.part(60))


class TrieRanking(OurCatalogueSide):
    """Ours: every title's log-likelihood from one pass over the tree, one user at a time."""

    def scored(self, prompts: list[list[int]]) -> list[Tensor]:
        """Log-likelihoods of the titles that the padded side scores too, out of all."""
        chosen = compared_items(self.setting, len(self.answers))
        with self.context():
            return [
                catalogue_scores(cast(CausalBackbone, self.model.backbone), *self.left_padded([prompt]), self.trie)[
                    0, chosen
                ]
                for prompt in prompts
            ]


class PlainCatalogueSide(CatalogueSide):
    """The model as plain transformers loads it."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting, users)
        self.model = load_plain(setting).eval()

    def to_float(self) -> None:
        """Turns the weights into float32."""
        self.model.float()


class PaddedRanking(PlainCatalogueSide):
    """The usual way: every title a row; some titles are timed, and count as their share of a catalogue."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting, users)
        self.chosen = compared_items(setting, len(self.answers))
        self.rows = BATCH_SIZES[0]

    def prepare(self) -> None:
        """Chooses the batch size that scores the titles of one user fastest."""
        tried = {}
        for rows in BATCH_SIZES:
            self.rows = rows
            tried[rows] = timed_scores(self.setting.device, 1, partial(self.scored, self.prompts[:1])).seconds
        self.rows = min(tried, key=lambda rows: tried[rows])
        self.config = {
            "rows_a_batch": self.rows,
            "tried_seconds": tried,
            "titles_timed": len(self.chosen),
            "titles": len(self.answers),
            "scaled": "by the number of titles",
        }

    def units(self) -> float:
        """Shares of a catalogue."""
        return len(self.prompts) * len(self.chosen) / len(self.answers)

    def scored(self, prompts: list[list[int]]) -> list[Tensor]:
        """Log-likelihoods of some titles."""
        rows = []
        for prompt in prompts:
            batches = pad_batches([(prompt, self.answers[item]) for item in self.chosen], self.rows, self.pad)
            scores = torch.zeros(len(self.chosen))
            for batch in batches:
                scores[batch.place] = score_padded(self.model, batch, self.setting.device).float().cpu()
            rows.append(scores)
        return rows


class TrieBeams(OurCatalogueSide):
    """Ours: all users and beams take a step together over the tree of titles."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting, users)
        self.config = {"users_a_batch": len(self.prompts), "beams": BEAMS}

    def scored(self, prompts: list[list[int]]) -> list[Tensor]:
        """Log-likelihood `[I]` of each title found, NaN elsewhere."""
        with self.context():
            retrieved = beam_search(
                cast(CausalBackbone, self.model.backbone), *self.left_padded(prompts), self.trie, BEAMS
            )
        table = torch.full((len(prompts), len(self.answers)), torch.nan)
        first = torch.tensor([self.title[tuple(answer)] for answer in self.answers])
        table[retrieved.user.cpu(), first[retrieved.item.cpu()]] = retrieved.score.float().cpu()
        return list(table)


class PrefixFunction(PlainCatalogueSide):
    """The usual way: transformers' `generate` asks a Python function what may come next (as GENRE and others do)."""

    def __init__(self, setting: Setting, users: int) -> None:
        super().__init__(setting, users)
        allowed: dict[tuple[int, ...], set[int]] = {}
        for answer in self.answers:
            for length in range(len(answer)):
                allowed.setdefault(tuple(answer[:length]), set()).add(answer[length])
        self.allowed = {start: sorted(tokens) for start, tokens in allowed.items()}
        self.end = self.answers[0][-1]
        self.users_a_batch = 1

    def prepare(self) -> None:
        """Chooses between one user at a time and all at once."""
        tried = {}
        for users in (1, len(self.prompts)):
            self.users_a_batch = users
            tried[users] = timed_scores(self.setting.device, 1, partial(self.scored, self.prompts)).seconds
        self.users_a_batch = min(tried, key=lambda users: tried[users])
        self.config = {
            "users_a_batch": self.users_a_batch,
            "tried_seconds": tried,
            "beams": BEAMS,
            "length_penalty": 0.0,
            "early_stopping": False,
        }

    def scored(self, prompts: list[list[int]]) -> list[Tensor]:
        """Log-likelihood `[I]` of each title found, NaN elsewhere."""
        size = self.users_a_batch
        return [row for begin in range(0, len(prompts), size) for row in self._batch(prompts[begin : begin + size])]

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]]) -> list[Tensor]:
        token, length = self.left_padded(prompts)
        width = token.shape[1]
        attention = (torch.arange(width, device=token.device) >= width - length[:, None]).long()

        def permitted(_: int, ids: Tensor) -> list[int]:
            return self.allowed.get(tuple(ids[width:].tolist()), [self.end])

        output = self.model.generate(
            input_ids=token,
            attention_mask=attention,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            prefix_allowed_tokens_fn=permitted,
            max_new_tokens=max(map(len, self.answers)),
            do_sample=False,
            length_penalty=0.0,  # the plain sum of log-probabilities
            early_stopping=False,
            eos_token_id=self.end,
            pad_token_id=self.pad,
            return_dict_in_generate=True,
            output_scores=True,
        )
        table = torch.full((len(prompts), len(self.answers)), torch.nan)
        for row, (ids, score) in enumerate(
            zip(output.sequences[:, width:].tolist(), output.sequences_scores.tolist(), strict=True)
        ):
            answer = tuple(ids[: ids.index(self.end) + 1]) if self.end in ids else ()
            if answer in self.title:  # a beam that no title is left for ends in impossible tokens
                table[row // BEAMS, self.title[answer]] = score
        return list(table)


def full_ranking() -> Comparison:
    """Every title under the prompt of one user at a time."""
    return Comparison(
        name="catalogue",
        title="ranking the whole catalogue",
        unit="users",
        sides={"trie": partial(TrieRanking, users=2), "padded": partial(PaddedRanking, users=2)},
        targets={"padded": 15},
        rules=[ComparisonRule("log-likelihoods", "score", "typical", tolerance=0.7, exact_tolerance=1e-4)],
    )


def beams() -> Comparison:
    """The best titles, found by beams that can only spell titles."""
    return Comparison(
        name="beam",
        title=f"constrained search with {BEAMS} beams",
        unit="users",
        sides={"trie": partial(TrieBeams, users=16), "generate": partial(PrefixFunction, users=16)},
        targets={"generate": 10},
        rules=[
            # generate drops titles that end outside the best beams of a step; ours keeps every title that ends.
            ComparisonRule("titles that only one side found", "score", "unshared", tolerance=0.5, exact_tolerance=0.5),
            ComparisonRule("log-likelihoods of the others", "score", "common", tolerance=3.0, exact_tolerance=1e-3),
            ComparisonRule("ours worse at a rank by", "score", "worse", tolerance=0.5, exact_tolerance=1e-4),
        ],
    )
