"""Prompts put together from ids that exist already: the template's own text, and titles in their frames.

Encoding whole prompts is most of what a batch costs. A tokenizer cuts a text into pre-tokens and encodes each alone, so
a text may be encoded in pieces wherever it is sure to cut. Here that is before a space that follows anything else:
`oldest first:| Alien;| Heat.` That a tokenizer does cut there is looked up in its pre-tokens, with every title of the
catalogue; where it does not, or where no space stands between two titles (Chinese), prompts are encoded whole.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from datamodules.contract.errors import InputError, say
from datamodules.instructions.prompts import Shape, SlateText
from datamodules.instructions.slates import Slate
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.titles import Frame, ItemIds, TitleTokens, cuts_between

Piece = str | tuple[Frame, int]
"""Text, or a title (or told text) as its frame and its place among those shown."""

_MARKS = range(0xF0000, 0xFFFFE)  # private characters that stand for titles
_MARK = chr(_MARKS[0])
_CUT = re.compile(r"(?<=\S)(?= )")
_TEXTS = ("Drama", "rain (and 2 more), e.g. 'Noir'; x!", "安静的电影、雨")  # told by made-up cases
_KEPT = 4096  # outlines, and texts between titles, that are kept


class Outline(NamedTuple):
    """A prompt without its titles.

    Attributes:
        head: ids before the first title.
        slots: for each title or text its frame, which of the shown ones it is, and the ids between it and the next.
    """

    head: list[int]
    slots: list[tuple[Frame, int, list[int]]]


class _NoOutlineError(Exception):
    """A prompt's text has no cuts that leave one title to a piece."""


class PromptPieces:
    """Makes prompts of slates from cached pieces, exactly as encoding them whole would.

    Args:
        text: renders slates.
        encoder: encodes texts.
        first_item: token id of item 0, where items are tokens: a text is then cut at each of them.

    Attributes:
        titles: ids of the catalogue's titles.
        reason: why prompts are encoded whole; empty where they are put together.
    """

    def __init__(self, text: SlateText, encoder: ChatEncoder, first_item: int | None = None) -> None:
        self.text, self.encoder = text, encoder
        self.titles: TitleTokens | ItemIds
        self._tokens = first_item is not None
        self._outlines: dict[Shape, Outline | None] = {}
        self._texts: dict[str, list[int]] = {}
        self.reason, frames = "", dict[Frame, None]()
        if first_item is not None:
            self.titles = ItemIds(first_item)
            return
        try:
            for slate in self._probes():
                shape = self.text.shape(slate)
                pieces = [piece for part in self._cut(shape)[1:] for piece in part if not isinstance(piece, str)]
                frames |= {frame: None for frame, place in pieces if place < shape.titles}
        except _NoOutlineError as error:
            self.reason, frames = str(error), {}
        self.titles = TitleTokens(encoder.tokenizer, text.titles, list(frames))
        self.reason = self.reason or self._difference()
        if self.reason:
            say(f"prompts are encoded whole, which is slower: {self.reason}")

    def prompt(self, slate: Slate) -> list[int] | None:
        """Ids of a slate's prompt; None where it must be encoded whole."""
        if self.reason:
            return None
        outline = self._outline(self.text.shape(slate))
        items = self.text.shown(slate)
        if outline is None or not self.titles.blank.isdisjoint(items):
            return None
        ids = outline.head.copy()
        texts = self.text.texts(slate) if self.text.told else ()
        for frame, place, tail in outline.slots:
            if place < len(items):
                ids += self.titles.framed(frame, items[place])
            else:
                ids += self._ids(f"{frame.before}{texts[place - len(items)]}{frame.after}")
            ids += tail
        return ids

    def prepare(self, slates: Sequence[Slate]) -> None:
        """Encodes the texts that the prompts of slates tell in one call; one by one they take twice as long."""
        if self.reason or not self.text.told:
            return
        found: dict[str, None] = {}
        for slate in slates:
            shape = self.text.shape(slate)
            outline, texts = self._outline(shape), self.text.texts(slate)
            told = [slot for slot in outline.slots if slot[1] >= shape.titles] if outline else []
            found |= {f"{frame.before}{texts[place - shape.titles]}{frame.after}": None for frame, place, _ in told}
        missing = [text for text in found if text not in self._texts]
        if len(self._texts) + len(missing) > _KEPT:
            self._texts.clear()
            missing = list(found)
        self._texts |= dict(zip(missing, self.encoder.encode_texts(missing), strict=True))

    def whole(self, slates: list[Slate]) -> list[list[int]]:
        """Ids of slates' prompts, encoded whole in one call.

        Raises:
            InputError: items are tokens, which no text can be encoded to.
        """
        if slates and self._tokens:
            raise InputError(f"data.items Token: template {self.text.template.id} shows items where none can stand")
        made = [self.text.of(slate).question(slate) for slate in slates]
        ids = self.encoder.encode_texts([text for one in made for text in (one.system, one.user, one.opening)])
        return [self.encoder.prompt_ids(*three) for three in zip(ids[::3], ids[1::3], ids[2::3], strict=True)]

    def entry(self, item: int) -> list[int]:
        """Ids of an item as an entry of an open list."""
        if isinstance(self.titles, ItemIds):
            return self.titles.alone(item)
        frame = self._entry_frame
        if frame in self.titles.row and item not in self.titles.blank:
            return self.titles.framed(frame, item)
        return self.encoder.encode_texts([self.titles.text(frame, item)])[0]

    @cached_property
    def _entry_frame(self) -> Frame:
        return Frame(*self.text.template.written(_MARK).split(_MARK))

    def sequence(self, slate: Slate) -> tuple[list[int], list[list[int]]] | None:
        """Ids before an open list, and of its entries: the history and the target; None where a list is encoded whole."""
        if self.reason or not self.text.template.entry:
            return None
        items = [*slate.history.tolist(), slate.target]
        outline = self._outline(self.text.shape(slate))
        if outline is None or not self.titles.blank.isdisjoint(items):
            return None
        return outline.head, [self.entry(item) for item in items]

    def _outline(self, shape: Shape) -> Outline | None:
        if shape not in self._outlines:
            if len(self._outlines) >= _KEPT:
                self._outlines.clear()
            self._outlines[shape] = self._make_outline(shape)
        return self._outlines[shape]

    def _make_outline(self, shape: Shape) -> Outline | None:
        try:
            system, *turns = self._cut(shape)
        except _NoOutlineError:
            return None
        around = self.encoder.prompt_ids(self._ids(system), [-1], [-2])
        titles: list[tuple[Frame, int]] = []
        ids: list[list[int]] = [around[: around.index(-1)]]
        for pieces, behind in zip(turns, (around[around.index(-1) + 1 : around.index(-2)], []), strict=True):
            text = ""  # neighbouring pieces without a title are one text
            for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                elif piece[1] >= shape.titles or piece[0] in self.titles.row:
                    ids[-1] = ids[-1] + self._ids(text)
                    titles.append(piece)
                    ids.append([])
                    text = ""
                else:
                    return None
            ids[-1] = ids[-1] + self._ids(text) + behind
        return Outline(ids[0], [(*title, tail) for title, tail in zip(titles, ids[1:], strict=True)])

    def _ids(self, text: str) -> list[int]:
        if text not in self._texts:
            if len(self._texts) >= _KEPT:
                self._texts.clear()
            self._texts[text] = self.encoder.encode_texts([text])[0]
        return self._texts[text]

    def _cut(self, shape: Shape) -> tuple[str, list[Piece], list[Piece]]:
        """The system turn, and in pieces the user turn and the opening: texts, and titles (or told texts) as their frame and place."""
        count = shape.titles + len(self.text.told)
        if count > len(_MARKS):
            raise _NoOutlineError(f"a prompt shows {count} titles")
        marks = {chr(mark): place for place, mark in enumerate(_MARKS[:count])}
        made = self.text.prompt(shape, list(marks))
        if not marks.keys().isdisjoint(made.system):
            raise _NoOutlineError(f"the system turn of {self.text.template.id} shows titles")
        if self._tokens:
            user, opening = (_cut_at(text, marks) for text in (made.user, made.opening))
            # An open list of items is theirs alone: no text stands between them.
            return made.system, user, [piece for piece in opening if not isinstance(piece, str)]
        return made.system, self._pieces(made.user, marks), self._pieces(made.opening, marks)

    def _pieces(self, text: str, marks: dict[str, int]) -> list[Piece]:
        pieces: list[Piece] = []
        for piece in _CUT.split(text):
            found = [mark for mark in piece if mark in marks]
            if len(found) > 1:
                raise _NoOutlineError(f"{self.text.template.id} has no space between two titles")
            pieces.append((Frame(*piece.split(found[0])), marks[found[0]]) if found else piece)
        return pieces

    def _difference(self) -> str:
        """Why prompts may not be put together; empty where they may."""
        tokenizer = self.encoder.tokenizer
        name = type(tokenizer).__name__
        for token in tokenizer.added_tokens_decoder.values():
            if not token.special and (token.rstrip or _CUT.search(token.content)):
                return f"the added token {token.content!r} of {name} reaches beyond a space"
        if not self.titles.cut:
            return f"{name} joins a space to the text before it"
        probes = list(self._probes())
        for slate, whole in zip(probes, self.whole(probes), strict=True):
            _, *turns = self._cut(self.text.shape(slate))
            items = self.text.shown(slate)
            told = self.text.texts(slate)
            for pieces in turns:
                texts = [
                    piece
                    if isinstance(piece, str)
                    else self.titles.text(piece[0], items[piece[1]])
                    if piece[1] < len(items)
                    else f"{piece[0].before}{told[piece[1] - len(items)]}{piece[0].after}"
                    for piece in pieces
                ]
                if not cuts_between(tokenizer, texts):
                    return f"{name} joins a space to the text before it"
            if self.prompt(slate) not in (whole, None):
                return f"{self.text.template.id} does more with titles than to show them"
        return ""

    def _probes(self) -> Iterator[Slate]:
        """Made-up cases with short histories, which show every frame of a template."""
        draw = random.Random(0)  # noqa: S311
        longest = 7 if self.text.ratings is None else min(7, len(self.text.ratings))
        for number in range(32):
            history = draw.choices(range(len(self.text.titles)), k=min(number % 8, longest))
            candidates = draw.choices(range(len(self.text.titles)), k=1 + number // 8)
            liked = [draw.random() < 0.5 for _ in history]
            yield Slate(
                case=-1,
                user="",
                history=np.array(history, int),
                liked=np.array(liked, bool),
                candidates=np.array(candidates),
                target=candidates[0],
                target_liked=False,
                begin=0 if self.text.template.form == "rating" else -1,
                preference=draw.choice(_TEXTS),
                intention=draw.choice(_TEXTS),
            )


def _cut_at(text: str, marks: dict[str, int]) -> list[Piece]:
    """Pieces of a text that is cut at its items; the space before one is left out, as it is part of a word."""
    pieces: list[Piece] = []
    for piece in re.split(f"([{''.join(marks)}])" if marks else "(?!)", text):
        if piece not in marks:
            pieces.append(piece.removesuffix(" ") if piece != text else piece)
        else:
            pieces.append((Frame(), marks[piece]))
    return pieces
