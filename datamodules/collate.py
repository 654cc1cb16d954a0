"""From slates to batches: one collator for each batch format.

# U cases, B branches, R rows, N tokens a row, L labelled tokens, H history
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.batch import Batch, InteractionBatch, PromptTreeBatch, TaggedTextBatch
from datamodules.chat import ChatEncoder, EncodedInstruction
from datamodules.forest import Forest, build_forest, pack_rows
from datamodules.instructions import Instruction, InstructionTemplate, clean_title
from datamodules.slates import Slate
from datamodules.sources import InputError

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of one answer."""


@dataclass(frozen=True)
class SlateText:
    """Turns slates into instructions and into what every batch holds of them.

    Attributes:
        titles: `[I]` titles by item code.
        template: the wording.
        words: the domain's nouns and verbs in the template's language.
    """

    titles: list[str]
    template: InstructionTemplate
    words: dict[str, str]

    def instruction(self, slate: Slate) -> Instruction:
        """The rendered instruction of a slate."""
        pointwise = self.template.form == "like"
        return self.template.render(
            self.words,
            history=[self.titles[i] for i in slate.history],
            liked=slate.liked.tolist() if pointwise else (),
            candidates=() if pointwise else [self.titles[i] for i in slate.candidates],
            target=self.titles[slate.target] if pointwise else "",
        )

    def branches(self, slate: Slate) -> tuple[list[int], list[float]]:
        """Item code (or answer number) and gain of each branch."""
        if self.template.form == "like":
            return [0, 1], [float(slate.target_liked), float(not slate.target_liked)]
        return slate.candidates.tolist(), [float(item == slate.target) for item in slate.candidates]


def _shared_fields(text: SlateText, slates: Sequence[Slate]) -> dict[str, Any]:
    items: list[int] = []
    gains: list[float] = []
    owner: list[int] = []
    for number, slate in enumerate(slates):
        item, gain = text.branches(slate)
        items += item
        gains += gain
        owner += [number] * len(item)
    return {
        "case": torch.tensor([slate.case for slate in slates]),
        "branch_case": torch.tensor(owner),
        "branch_item": torch.tensor(items),
        "relevance": torch.tensor(gains),
        "answers": "fixed" if text.template.answers else "candidates",
    }


class PromptTreeCollator:
    """Makes `PromptTreeBatch`es: the slates of a group become one tree, trees are packed into rows.

    Args:
        text: renders slates.
        encoder: encodes instructions.
        context: longest sequence the backbone takes, in tokens; longer prompts lose their oldest history.
        row_tokens: tokens a packed row holds (a larger tree gets a longer row).
        pad: id that fills rows.
    """

    answer_tokens = 2048
    """Answers of one tree hold at most so many tokens; more (a catalogue) become several trees under one prompt."""

    def __init__(self, text: SlateText, encoder: ChatEncoder, context: int, row_tokens: int, pad: int) -> None:
        self.text, self.encoder = text, encoder
        self.context, self.row_tokens, self.pad = context, row_tokens, pad
        self.truncated = 0

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> PromptTreeBatch:
        """Collates groups of slates.

        Raises:
            InputError: a prompt is too long even without its history, or an answer has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        encoded = self._encode(slates)
        forests: list[Forest] = []
        answers: list[list[int]] = []
        paths: list[np.ndarray[Any, Any]] = []
        tree_of: list[int] = []
        unshared, position = 0, 0
        for group in groups:
            pairs = [(made.prompt, a) for made in encoded[position : position + len(group)] for a in made.answers]
            position += len(group)
            for part in _parts(pairs, self.answer_tokens):
                # The last token of an answer is predicted but predicts nothing, so it never enters the network.
                sequences = [[*prompt, *answer[:-1]] for prompt, answer in part]
                answers += [answer for _, answer in part]
                tree_of += [len(forests)] * len(part)
                forests.append(build_forest(sequences))
                paths += forests[-1].path
                unshared += sum(map(len, sequences))
        rows = pack_rows([len(f.token) for f in forests], self.row_tokens)
        token, end, depth, offset = self._lay_out(forests, rows)
        place, label, branch = [], [], []
        for number, (answer, path) in enumerate(zip(answers, paths, strict=True)):
            place.append(path[-len(answer) :] + offset[tree_of[number]])
            label += answer
            branch += [number] * len(answer)
        return PromptTreeBatch(
            **_shared_fields(self.text, slates),
            token=torch.from_numpy(token),
            end=torch.from_numpy(end),
            depth=torch.from_numpy(depth),
            label_place=torch.from_numpy(np.concatenate(place)),
            label_token=torch.tensor(label),
            label_branch=torch.tensor(branch),
            tokens=sum(len(f.token) for f in forests),
            tokens_unshared=unshared,
        )

    def _lay_out(self, forests: Sequence[Forest], rows: Sequence[Sequence[int]]) -> tuple[Any, Any, Any, list[int]]:
        """Writes trees side by side into `[R, N]` rows; returns also each tree's place in the flattened rows."""
        width = max(sum(len(forests[t].token) for t in row) for row in rows)
        token = np.full((len(rows), width), self.pad, dtype=np.int64)
        end = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding: trees of one token
        depth = np.zeros((len(rows), width), dtype=np.int64)
        offset = [0] * len(forests)
        for number, row in enumerate(rows):
            begin = 0
            for tree in row:
                forest = forests[tree]
                stretch = slice(begin, begin + len(forest.token))
                token[number, stretch] = forest.token
                end[number, stretch] = forest.end + begin
                depth[number, stretch] = forest.depth
                offset[tree] = number * width + begin
                begin = stretch.stop
        return token, end, depth, offset

    def _encode(self, slates: Sequence[Slate]) -> list[EncodedInstruction]:
        made = self.encoder.encode([self.text.instruction(slate) for slate in slates])
        for number, slate in enumerate(slates):
            if not made[number].answers:
                raise InputError(f"user {slate.user!r} has no candidates")
            longest = max(map(len, made[number].answers))
            excess = len(made[number].prompt) + longest - 1 - self.context
            self.truncated += excess > 0
            shorter = slate
            while excess > 0:
                shown = len(shorter.history)
                if shown == 0:
                    raise InputError(
                        f"user {slate.user!r}: the prompt is {excess} tokens over the backbone's {self.context} even"
                        " without its history"
                    )
                shorter = shorter.without_oldest(max(1, shown * excess // len(made[number].prompt)))
                made[number] = self.encoder.encode([self.text.instruction(shorter)])[0]
                excess = len(made[number].prompt) + longest - 1 - self.context
        return made


def _parts(pairs: list[Pair], limit: int) -> Iterator[list[Pair]]:
    """Cuts (prompt, answer) pairs into runs whose answers hold at most `limit` tokens."""
    part: list[Pair] = []
    size = 0
    for pair in pairs:
        if part and size + len(pair[1]) > limit:
            yield part
            part, size = [], 0
        part.append(pair)
        size += len(pair[1])
    yield part


class TaggedTextCollator:
    """Makes `TaggedTextBatch`es: history and candidate titles in one encoder text.

    Args:
        text: renders slates; only its titles are used.
        tokenizer: a fast tokenizer with separator tokens.
        context: longest text the encoder takes, in tokens; the oldest history goes first.
    """

    def __init__(self, text: SlateText, tokenizer: Any, context: int) -> None:
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise InputError(
                f"{type(tokenizer).__name__} has no [CLS] and [SEP]; tagged texts need an encoder backbone"
            )
        self.text, self.tokenizer, self.context = text, tokenizer, context
        self.truncated = 0
        self._titles: dict[int, list[int]] = {}

    def _title(self, item: int) -> list[int]:
        if item not in self._titles:
            title = clean_title(self.text.titles[item])
            self._titles[item] = self.tokenizer(title, add_special_tokens=False, split_special_tokens=True).input_ids
        return self._titles[item]

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> TaggedTextBatch:
        """Collates groups of slates, one text each.

        Raises:
            InputError: the candidates alone are longer than the context, or a candidate has no tokens.
        """
        slates = [slate for group in groups for slate in group]
        shared = _shared_fields(self.text, slates)
        rows = []
        first_branch = 0
        for slate in slates:
            rows.append(self._row(slate, first_branch))
            first_branch += len(slate.candidates)
        width = max(len(ids) for ids, _ in rows)
        token = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        branch = torch.full((len(rows), width), -1)
        attention = torch.zeros((len(rows), width), dtype=torch.bool)
        for number, (ids, owner) in enumerate(rows):
            token[number, : len(ids)] = torch.tensor(ids)
            branch[number, : len(ids)] = torch.tensor(owner)
            attention[number, : len(ids)] = True
        return TaggedTextBatch(
            **shared, token=token, attention=attention, branch=branch, tokens=sum(len(ids) for ids, _ in rows)
        )

    def _row(self, slate: Slate, first_branch: int) -> tuple[list[int], list[int]]:
        separator = self.tokenizer.sep_token_id
        tail: list[int] = []
        owner: list[int] = []
        for number, item in enumerate(slate.candidates):
            title = self._title(int(item))
            if not title:
                raise InputError(f"user {slate.user!r}: the candidate {self.text.titles[item]!r} has no tokens")
            tail += [*title, separator]
            owner += [first_branch + number] * len(title) + [-1]
        room = self.context - len(tail) - 2
        if room < 0:
            raise InputError(f"user {slate.user!r}: the candidates alone exceed the backbone's {self.context} tokens")
        history: list[int] = []
        for item in slate.history[::-1]:
            title = self._title(int(item))
            if len(history) + len(title) + 1 > room:
                self.truncated += 1
                break
            history = [*title, separator, *history]
        head = [self.tokenizer.cls_token_id, *history, separator]
        return [*head, *tail], [-1] * len(head) + owner


class InteractionCollator:
    """Makes `InteractionBatch`es: item codes only.

    Args:
        text: knows the gains.
    """

    truncated = 0

    def __init__(self, text: SlateText) -> None:
        self.text = text

    def __call__(self, groups: Sequence[Sequence[Slate]]) -> Batch:
        """Collates groups of slates."""
        slates = [slate for group in groups for slate in group]
        width = max(1, *(len(slate.history) for slate in slates))
        history = torch.full((len(slates), width), -1)
        for row, slate in zip(history, slates, strict=True):
            if len(slate.history):
                row[-len(slate.history) :] = torch.from_numpy(np.ascontiguousarray(slate.history))
        return InteractionBatch(**_shared_fields(self.text, slates), history=history)
