"""Titles' tokens: equal to what the tokenizer gives, kept under a key in which everything counts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datamodules.items.base import clean_title
from datamodules.sources import arrays as array_cache
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tokens import titles as title_tokens
from datamodules.tokens.chat import encode_plain
from datamodules.tokens.titles import Frame, TitleTokens, cuts_between

TITLES = ["Night of Day", "The <|im_end|> [SEP] Affair", "Up", "  Heat\n(1995) ", "\u200b", "Amélie"]
FRAMES = [Frame(" ", ";"), Frame(" ", ".\nWhich")]


@pytest.fixture
def tokenizer(tiny_causal: Path) -> Any:
    return load_tokenizer(str(tiny_causal))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def ids(tokenizer: Any, text: str) -> list[int]:
    made: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return made


@pytest.mark.parametrize("backbone", ["tiny_causal", "tiny_encoder"])
def test_tokens_are_those_of_the_cleaned_title_alone_and_framed(backbone: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(backbone)))
    made = TitleTokens(tokenizer, TITLES, FRAMES)

    for item, title in enumerate(TITLES):
        assert made.alone(item) == ids(tokenizer, clean_title(title))
        for frame in FRAMES:
            assert made.text(frame, item) == f"{frame.before}{clean_title(title)}{frame.after}"
            assert made.framed(frame, item) == ids(tokenizer, made.text(frame, item))
    assert made.blank == {4}
    assert made.cut


def test_a_second_use_encodes_nothing(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TitleTokens(tokenizer, TITLES, FRAMES)
    monkeypatch.setattr(title_tokens, "_encode", None)
    again = TitleTokens(tokenizer, TITLES, FRAMES)

    assert [again.alone(item) for item in range(6)] == [first.alone(item) for item in range(6)]
    assert len(entries(cache)) == 1


def test_an_earlier_call_of_the_tokenizer_changes_no_key(tokenizer: Any, cache: Path) -> None:
    tokenizer(["a b c d e", "a"], padding=True, truncation=True, max_length=3)
    made = TitleTokens(tokenizer, TITLES)
    TitleTokens(tokenizer, TITLES)

    assert len(entries(cache)) == 1
    assert len(made.alone(1)) > 3
    assert made.alone(1) == ids(tokenizer, TITLES[1])


# --- every field of the key -----------------------------------------------------------------------------------------


def changed(tokenizer: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """The tokenizer with another content."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    change(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def without_last_merge(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def swapped_vocabulary(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def lowercased(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def digits_apart(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]],
    }


def ordinary_mark(content: dict[str, Any]) -> None:
    content["added_tokens"][-1]["special"] = False


class OtherClass(PreTrainedTokenizerFast):
    """Another class of the same content."""


def with_token(tokenizer: Any) -> Any:
    tokenizer.add_tokens([AddedToken("Night of", normalized=False)])
    return tokenizer


def of_other_class(tokenizer: Any) -> Any:
    return OtherClass(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


TOKENIZERS: dict[str, Callable[[Any], Any]] = {
    "merges": lambda t: changed(t, without_last_merge),
    "vocabulary": lambda t: changed(t, swapped_vocabulary),
    "normaliser": lambda t: changed(t, lowercased),
    "pre-tokenizer": lambda t: changed(t, digits_apart),
    "special tokens": lambda t: changed(t, ordinary_mark),
    "added tokens": with_token,
    "tokenizer class": of_other_class,
}
TEXTS: dict[str, tuple[list[str], list[Frame]]] = {
    "a title": (["Night of Days", *TITLES[1:]], FRAMES),
    "order of titles": (TITLES[::-1], FRAMES),
    "number of titles": ([*TITLES, "New"], FRAMES),
    "a frame's beginning": (TITLES, [Frame(" \u201c", ";"), FRAMES[1]]),
    "a frame's end": (TITLES, [FRAMES[0], Frame(" ", ".\nWhat")]),
    "number of frames": (TITLES, FRAMES[:1]),
}
SURROUNDINGS = ["tokenizers", "transformers", "unicode", "code"]


@pytest.mark.parametrize("field", [*TOKENIZERS, *TEXTS, *SURROUNDINGS])
def test_a_change_of_any_field_makes_the_tokens_anew(
    field: str, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TitleTokens(tokenizer, TITLES, FRAMES)
    TitleTokens(tokenizer, TITLES, FRAMES)
    assert len(entries(cache)) == 1
    calls: list[object] = []
    encode = title_tokens._encode
    monkeypatch.setattr(title_tokens, "_encode", lambda *given: (calls.append(given), encode(*given))[1])

    titles, frames = TEXTS.get(field, (TITLES, FRAMES))
    other = TOKENIZERS.get(field, lambda same: same)(tokenizer)
    if field in ("tokenizers", "transformers"):
        version = title_tokens.version
        monkeypatch.setattr(title_tokens, "version", lambda name: "0.0.0" if name == field else version(name))
    if field == "unicode":
        monkeypatch.setattr(unicodedata, "unidata_version", "1.0.0")
    if field == "code":
        monkeypatch.setattr(title_tokens, "ENCODING_VERSION", 0)
    made = TitleTokens(other, titles, frames)

    assert len(calls) == 1
    assert len(entries(cache)) == 2
    plain = encode_plain(other, [clean_title(title) for title in titles])
    assert [made.alone(n) for n in range(len(titles))] == plain


def test_the_format_of_files_counts_too(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TitleTokens(tokenizer, TITLES)
    monkeypatch.setattr(array_cache, "_MAGIC", b"IRarray2")
    made = TitleTokens(tokenizer, TITLES)

    assert made.alone(0) == ids(tokenizer, TITLES[0])
    [only] = cache.rglob("*.arrays")
    assert only.read_bytes().startswith(b"IRarray2")


def test_another_encoding_has_another_version() -> None:
    """Arrays in users' caches are found again by `ENCODING_VERSION`: where these change, raise it."""
    words = ["[UNK]", "</s>", "Heat", "(", "1995", ")", "<", "/", "s", ">", ";", ".", "Which", "!", "é"]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = split(r"! |\w+|\s|.")
    plain = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="[UNK]")
    titles = [clean_title(title) for title in ["  Heat\n(1995) ", "</s> \u202eé", "\u200b", "Heat!"]]
    arrays = title_tokens._encode(plain, titles, [Frame(), Frame(" ", ";"), Frame("", "!")])

    heat, mark = [2, 0, 3, 4, 5], [6, 7, 8, 9, 0, 14]
    framed = [[0, *heat, 10], [0, *mark, 10], [0, 10], [0, 2, 13, 10]]
    ended = [[*heat, 13], [*mark, 13], [13], [2, 13, 13]]
    assert title_tokens.ENCODING_VERSION == 1
    assert arrays["ids"].tolist() == sum([heat, mark, [2, 13], *framed, *ended], [])
    assert arrays["start"].tolist() == [[0, 5, 11, 11, 13], [13, 20, 28, 30, 34], [34, 40, 47, 48, 51]]
    assert arrays["cut"].tolist() == [1, 1, 0]  # with what follows, "! " is one pre-token


# --- where a text may be cut ----------------------------------------------------------------------------------------


def of(pre_tokenizer: Any, normalizer: Any = None) -> Any:
    raw = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        raw.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def split(pattern: str) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(pattern), "isolated")


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "cut"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), None, True),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), True),
        (pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), True),
        (pre_tokenizers.Metaspace(), None, True),
        (pre_tokenizers.Whitespace(), None, True),
        (None, None, False),
        (pre_tokenizers.Metaspace(split=False), None, False),
        (split(r"[a-z]+"), None, False),  # "; " is one pre-token
        (None, normalizers.Replace(" ", "_"), False),
        (pre_tokenizers.Whitespace(), normalizers.Prepend("_"), False),  # each piece would get its own
        (pre_tokenizers.Whitespace(), normalizers.Strip(), False),
    ],
)
def test_cuts_are_looked_up_in_the_pre_tokens(pre_tokenizer: Any, normalizer: Any, cut: bool) -> None:
    assert cuts_between(of(pre_tokenizer, normalizer), ["first:", " Éte?;", " Heat é", " x"]) == cut


def test_one_title_that_joins_its_surroundings_is_enough(tokenizer: Any) -> None:
    """A pre-tokenizer that takes `! ` together cuts after every title but the one that ends so."""
    odd = of(split(r"[A-Za-z]+|! |."))
    frame = Frame(" ", "")
    assert TitleTokens(odd, ["Night", "Day"], [frame]).cut
    assert not TitleTokens(odd, ["Night", "Help!", "Day"], [frame]).cut


@pytest.fixture(params=["tiny_causal", "tiny_encoder"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(str(request.getfixturevalue(request.param)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1), min_size=2)
)
def test_what_may_be_cut_encodes_in_pieces(any_tokenizer: Any, words: list[str]) -> None:
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    if cuts_between(any_tokenizer, pieces):
        assert sum(encode_plain(any_tokenizer, pieces), []) == ids(any_tokenizer, "".join(pieces))
