"""The token ids of a catalogue's titles, which repeat in every prompt: made once, memory-mapped, shared.

# I items, F frames, N tokens of all titles in all frames
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from datamodules.items.base import clean_title
from datamodules.sources.arrays import Arrays, cached_arrays
from datamodules.tokens.chat import control_ids, encode_plain

ENCODING_VERSION = 1
"""Part of every key: to be raised when a change of `clean_title`, `encode_plain` or this file changes the arrays of some
titles, which the test of their golden ids shows; arrays made before are then made again."""


class Frame(NamedTuple):
    """What stands around a title in the piece of text that is encoded with it.

    Attributes:
        before: text from the beginning of the piece to the title.
        after: text from the title to the end of the piece.
    """

    before: str = ""
    after: str = ""


class TitleTokens:
    """Token ids of titles, alone and in the frames in which prompts show them.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        titles: `[I]` titles by item code; they are cleaned first.
        frames: frames beside that of the title alone.

    Attributes:
        cut: whether the tokenizer cuts a text at both ends of every framed title.
        blank: items of whose titles cleaning leaves nothing.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> raw = Tokenizer(models.WordLevel({"Alien": 1, "Heat": 2, ";": 3, "?": 0}, unk_token="?"))
        >>> raw.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", INSTRUCTREC_CACHE=folder):
        ...     tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
        ...     made = TitleTokens(tokenizer, ["Alien", "Alien Heat"], [Frame(" ", ";")])
        >>> made.alone(1), made.framed(Frame(" ", ";"), 1)
        ([1, 2], [1, 2, 3])
    """

    def __init__(self, tokenizer: Any, titles: Sequence[str], frames: Sequence[Frame] = ()) -> None:
        cleaned = [clean_title(title) for title in titles]
        self._cleaned = cleaned
        every = list(dict.fromkeys((Frame(), *frames)))
        self.row = {frame: row for row, frame in enumerate(every)}
        self.blank = frozenset(item for item, title in enumerate(cleaned) if not title)
        self.file = cached_arrays(
            "tokens", token_key(tokenizer, cleaned, every), lambda: _encode(tokenizer, cleaned, every)
        )
        self.cut = bool(self.file.arrays["cut"].all())
        self._map()

    def _map(self) -> None:
        self._ids, self._start = self.file.arrays["ids"], self.file.arrays["start"]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the arrays, which the file brings back."""
        return {name: value for name, value in vars(self).items() if name not in ("_ids", "_start")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the arrays again."""
        vars(self).update(state)
        self._map()

    def alone(self, item: int) -> list[int]:
        """Ids of an item's title, as a text of its own."""
        return self._ids[self._start[0, item] : self._start[0, item + 1]].tolist()  # type: ignore[no-any-return]

    def framed(self, frame: Frame, item: int) -> list[int]:
        """Ids of an item's title within a frame, as a text of its own."""
        start = self._start[self.row[frame]]
        return self._ids[start[item] : start[item + 1]].tolist()  # type: ignore[no-any-return]

    def text(self, frame: Frame, item: int) -> str:
        """What `framed` gives the ids of."""
        return f"{frame.before}{self._cleaned[item]}{frame.after}"


class ItemIds:
    """As `TitleTokens`, where an item is one token and needs no text around it.

    Args:
        first: token id of item 0.

    Example:
        >>> ItemIds(100).alone(7), ItemIds(100).framed(Frame(), 7)
        ([107], [107])
    """

    cut = True
    blank: frozenset[int] = frozenset()

    def __init__(self, first: int) -> None:
        self.first, self.row = first, {Frame(): 0}

    def alone(self, item: int) -> list[int]:
        """The item's id."""
        return [self.first + item]

    def framed(self, frame: Frame, item: int) -> list[int]:  # noqa: ARG002  # as of `TitleTokens`
        """The item's id."""
        return [self.first + item]

    def text(self, frame: Frame, item: int) -> str:  # noqa: ARG002
        """What stands for the item where a prompt is shown as text."""
        return f"<item {item}>"


def token_key(tokenizer: Any, cleaned: Sequence[str], frames: Sequence[Frame]) -> dict[str, str]:
    """Everything that decides the ids of titles.

    Args:
        tokenizer: its whole content counts, as it is now and not as its files were: vocabulary, merges, normaliser,
            pre-tokenizer, added and special tokens.
        cleaned: titles as they are encoded; they stand for the data and for how it is cleaned.
        frames: text around the titles; it stands for the template and its words.
    """
    encode_plain(tokenizer, ["a"])  # takes back the truncation and padding of an earlier call, which are no part of it
    content = tokenizer.backend_tokenizer.to_str()
    return {
        "tokenizer": hashlib.sha256(content.encode()).hexdigest(),
        "tokenizer class": type(tokenizer).__name__,
        "special tokens": f"none added, as ordinary text: {_digest(sorted(control_ids(tokenizer)))}",
        "titles": _digest(list(cleaned)),
        "frames": _digest(list(frames)),
        "code": str(ENCODING_VERSION),
        "tokenizers": version("tokenizers"),
        "transformers": version("transformers"),
        "unicode": unicodedata.unidata_version,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _encode(tokenizer: Any, cleaned: Sequence[str], frames: Sequence[Frame]) -> Arrays:
    """`[N]` ids; frame by frame `[F, I + 1]` where each title's begin; `[F]` whether the ends of titles are cuts."""
    texts = [f"{frame.before}{title}{frame.after}" for frame in frames for title in cleaned]
    encoded = encode_plain(tokenizer, texts)
    end = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    width = len(cleaned)
    start = np.stack([end[row * width : (row + 1) * width + 1] for row in range(len(frames))])
    ids = np.fromiter((token for made in encoded for token in made), dtype=np.uint32, count=int(end[-1]))
    cut = [frame == Frame() or _is_cut(tokenizer, cleaned, frame) for frame in frames]
    return {"ids": ids, "start": start, "cut": np.array(cut, dtype=np.uint8)}


def _is_cut(tokenizer: Any, cleaned: Sequence[str], frame: Frame) -> bool:
    pieces = [f"{frame.before}{title}{frame.after}" for title in cleaned if title]
    # What begins a text follows nothing; all else follows another piece.
    run = 200 if frame.before.startswith(" ") else 1
    return all(cuts_between(tokenizer, [*pieces[begin : begin + run], " x"]) for begin in range(0, len(pieces), run))


def cuts_between(tokenizer: Any, pieces: Sequence[str]) -> bool:
    """Whether a tokenizer encodes the pieces of a text each for itself.

    It does where its normaliser changes each piece by itself and none of its pre-tokens reaches into two.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> raw = Tokenizer(models.BPE())
        >>> raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
        >>> cuts_between(tokenizer, ["Alien!;", " Heat"]), cuts_between(tokenizer, ["Alien!", "; Heat"])
        (True, False)
    """
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is None:
        return False
    whole = "".join(pieces)
    if backend.normalizer is not None:
        pieces = [backend.normalizer.normalize_str(piece) for piece in pieces]
        whole = backend.normalizer.normalize_str(whole)
        if "".join(pieces) != whole:
            return False
    cuts = list(accumulate(map(len, pieces)))
    spans = (span for _, span in backend.pre_tokenizer.pre_tokenize_str(whole))
    return all(end <= cuts[bisect_right(cuts, begin)] for begin, end in spans)
