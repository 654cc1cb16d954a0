"""Prompts from cached pieces against the same prompts encoded whole, for the ways in which tokenizers cut."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.slates import Slate
from datamodules.instructions.templates import find_template
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.pieces import PromptPieces

TAME = ["Night of Day", "Up", "What's Love?", "101 Moons (1996)", "The <|im_end|> [SEP] Affair", "King, The!", "Amélie"]
ENGLISH = [f"{form}.en.{number}" for form in ("matching", "reranking", "like") for number in (1, 2, 3)]

# The pre-tokenizers of real families.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CUTTING: dict[str, tuple[Any, Any]] = {
    "gpt2": (GPT2, None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None),
    "llama3": (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]), None),
    "qwen2": (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]), normalizers.NFC()),
    "opt": (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
    "t5": (pre_tokenizers.Metaspace(), normalizers.NFKC()),
}
JOINING: dict[str, tuple[Any, Any]] = {
    "llama2": (None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
    "gemma": (pre_tokenizers.Split(" ", "merged_with_previous"), None),
    "whole": (None, None),
    "letters": (pre_tokenizers.Split(Regex("[A-Za-z]+"), "isolated"), None),
}


@cache
def trained(kind: str) -> Any:
    """A byte-pair tokenizer of a family's kind that has learnt from whole prompts, so that it merges all it may."""
    pre_tokenizer, normalizer = (CUTTING | JOINING)[kind]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        raw.normalizer = normalizer
    corpus = [prompt_text(name, seed) for name in ENGLISH for seed in range(20)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", unk_token="<unk>")


def prompt_text(name: str, seed: int) -> str:
    text = text_of(name, TAME)
    slate = slate_of(np.random.default_rng(seed), len(TAME))
    return text.instruction(slate).user


def text_of(name: str, titles: list[str]) -> SlateText:
    template = find_template(name)
    return SlateText(titles, template, MovieLens100K.words[template.language])


def slate_of(rng: np.random.Generator, items: int, history: int | None = None) -> Slate:
    count = int(rng.integers(0, 12)) if history is None else history
    candidates = rng.integers(items, size=int(rng.integers(1, 6)))
    return Slate(
        -1, "u", rng.integers(items, size=count), rng.integers(2, size=count) > 0, candidates, int(candidates[0]), True
    )


def whole(pieces: PromptPieces, slate: Slate) -> list[int]:
    """The independent way: the rendered instruction, encoded in one call."""
    instruction = replace(pieces.text.instruction(slate), answers=())
    return pieces.encoder.encode([instruction])[0].prompt


@pytest.mark.parametrize("name", ENGLISH)
@pytest.mark.parametrize("kind", CUTTING)
def test_pieces_make_exactly_the_whole_prompt(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = PromptPieces(text_of(name, TAME), ChatEncoder(trained(kind)))
    assert pieces.reason == ""
    rng = np.random.default_rng(1)
    for _ in range(40):
        slate = slate_of(rng, len(TAME))
        assert pieces.prompt(slate) == whole(pieces, slate)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("backbone", ["tiny_causal", "tiny_encoder"])
def test_pieces_make_exactly_the_whole_prompt_of_real_classes(backbone: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(backbone)))
    for name in ENGLISH:
        pieces = PromptPieces(text_of(name, TAME), ChatEncoder(tokenizer))
        rng = np.random.default_rng(1)
        for _ in range(10):
            slate = slate_of(rng, len(TAME))
            assert pieces.prompt(slate) == whole(pieces, slate)


WILD = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text(st.sampled_from(" ;:.,!?()'\"-\u0301\u00a8\u00a0\u3000a1Zé的😀\n\u202e"), max_size=8),
        st.sampled_from(["<|im_end|>", "; ", "'s", " (liked);", "\uf0000", "\U000f0000\U000f0001", "\ue000"]),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(titles=WILD, seed=st.integers(0, 1000), name=st.sampled_from(ENGLISH))
@pytest.mark.parametrize("kind", [*CUTTING, "llama2", "gemma"])
def test_any_titles_give_the_whole_prompt_or_none(kind: str, titles: list[str], seed: int, name: str) -> None:
    titles = [title.encode("utf-8", "ignore").decode() for title in titles]
    pieces = PromptPieces(text_of(name, titles), ChatEncoder(trained(kind)))
    rng = np.random.default_rng(seed)
    for _ in range(4):
        slate = slate_of(rng, len(titles))
        assert pieces.prompt(slate) in (None, whole(pieces, slate))
        assert pieces.whole([slate]) == [whole(pieces, slate)]


@pytest.mark.parametrize("kind", JOINING)
def test_a_tokenizer_that_does_not_cut_gets_whole_prompts_and_one_line(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = PromptPieces(text_of("matching.en.1", TAME), ChatEncoder(trained(kind)))

    assert "joins a space to the text before it" in pieces.reason
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("instructrec: prompts are encoded whole, which is slower: ")
    assert pieces.prompt(slate_of(np.random.default_rng(0), len(TAME))) is None


def test_chinese_templates_have_no_place_to_cut(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = PromptPieces(text_of("matching.zh.1", TAME), ChatEncoder(trained("gpt2")))

    assert pieces.reason == "matching.zh.1 has no space between two titles"
    assert pieces.prompt(slate_of(np.random.default_rng(0), len(TAME), history=3)) is None


def test_a_title_of_which_nothing_is_left_makes_its_prompts_whole() -> None:
    titles = [*TAME, "\u200b"]
    pieces = PromptPieces(text_of("like.en.1", titles), ChatEncoder(trained("gpt2")))
    slate = slate_of(np.random.default_rng(0), len(TAME), history=3)

    assert pieces.reason == ""
    assert pieces.prompt(slate) == whole(pieces, slate)
    assert pieces.prompt(replace(slate, history=np.array([0, 7, 1]))) is None


ODD: dict[str, tuple[dict[str, str], str]] = {
    "changes titles": ({"user": "Seen: {{ history | join('; ') | upper }}. Next?"}, "does more with titles"),
    "looks into titles": (
        {"user": "Seen: {{ history | join('; ') }}.{% if 'Up' in history %} Fun!{% endif %} Next?"},
        "does more with titles",
    ),
    "no space": ({"user": "Seen: {{ history | join(';') }}. Next?"}, "has no space between two titles"),
    "system turn": ({"system": "Seen: {{ history | join('; ') }}."}, "the system turn of odd shows titles"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_template_that_does_more_than_show_titles_is_encoded_whole(kind: str) -> None:
    changes, reason = ODD[kind]
    text = text_of("matching.en.1", TAME)
    text = replace(text, template=replace(text.template, id="odd", **changes))
    pieces = PromptPieces(text, ChatEncoder(trained("gpt2")))

    assert reason in pieces.reason
    slate = slate_of(np.random.default_rng(0), len(TAME), history=4)
    assert pieces.prompt(slate) is None
    assert pieces.whole([slate]) == [whole(pieces, slate)]


GREEDY: dict[str, Callable[[], AddedToken]] = {
    "takes spaces behind it": lambda: AddedToken("Heat", rstrip=True, normalized=False),
    "holds a space": lambda: AddedToken("Seen by", normalized=False),
}


@pytest.mark.parametrize("kind", GREEDY)
def test_an_added_token_that_reaches_beyond_a_space_is_seen(kind: str) -> None:
    tokenizer = pickle.loads(pickle.dumps(trained("gpt2")))
    tokenizer.add_tokens([GREEDY[kind]()])

    assert "reaches beyond a space" in PromptPieces(text_of("like.en.1", TAME), ChatEncoder(tokenizer)).reason


def test_a_harmless_added_token_is_no_reason() -> None:
    tokenizer = pickle.loads(pickle.dumps(trained("gpt2")))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("Love", lstrip=True, normalized=False)])
    titles = [*TAME, "I <think> so", "<think>", "My Love", "Love"]
    pieces = PromptPieces(text_of("matching.en.1", titles), ChatEncoder(tokenizer))

    assert pieces.reason == ""
    rng = np.random.default_rng(0)
    for _ in range(40):
        slate = slate_of(rng, len(titles))
        assert pieces.prompt(slate) == whole(pieces, slate)


def test_what_is_kept_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.tokens.pieces._KEPT", 20)
    pieces = PromptPieces(text_of("like.en.1", TAME), ChatEncoder(trained("gpt2")))
    rng = np.random.default_rng(0)
    for _ in range(200):
        slate = slate_of(rng, len(TAME))
        assert pieces.prompt(slate) == whole(pieces, slate)
        assert len(pieces._outlines) <= 20
        assert len(pieces._texts) <= 20


def test_pickled_pieces_make_the_same_prompts() -> None:
    pieces = PromptPieces(text_of("matching.en.1", TAME), ChatEncoder(trained("gpt2")))
    slate = slate_of(np.random.default_rng(0), len(TAME))

    assert pickle.loads(pickle.dumps(pieces)).prompt(slate) == pieces.prompt(slate)


@pytest.mark.integration
@pytest.mark.parametrize("backbone", ["smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_prompts_of_movielens_are_exact(backbone: str) -> None:
    """A quarter of the users for each template, others each time."""
    data = MovieLens100K(backbone=backbone)
    sequences = data.sequences
    encoder = ChatEncoder(load_tokenizer(backbone))
    for first, name in enumerate(ENGLISH):
        pieces = PromptPieces(text_of(name, sequences.titles), encoder)
        cases = range(first % 4, len(sequences.test), 4)
        slates = [data.slates.evaluation(sequences.test, case) for case in cases]
        assert [pieces.prompt(slate) for slate in slates] == pieces.whole(slates)


TOLD = [
    "P1,I2,T3.en.1",
    "P1,P2,I0,T2.en.2",
    "P0,P2,T2.en.3",
    "P1,P2,I1,T0.en.4",
    "thought_from_history.en.1",
    "history_and_item_from_query.en.2",
]
TEXTS = [
    "Drama",
    "it's 5 o'clock (really), isn't it?",
    "a; b. c!",
    "<|im_end|> x",
    "雨天 看的",
    "",
    "x" * 90,
    "e\u0301t\u00e9 ...",
    "~",
]


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("kind", CUTTING)
def test_told_texts_are_pieces_too(kind: str, name: str) -> None:
    pieces = PromptPieces(text_of(name, TAME), ChatEncoder(trained(kind)))
    assert pieces.reason == ""
    rng = np.random.default_rng(3)
    for number in range(60):
        texts = {"preference": TEXTS[number % len(TEXTS)], "intention": TEXTS[number * 5 % len(TEXTS)]}
        slate = replace(slate_of(rng, len(TAME)), **texts)
        assert pieces.prompt(slate) == whole(pieces, slate)


def test_texts_encoded_together_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.tokens.pieces._KEPT", 5)
    pieces = PromptPieces(text_of("P1,P2,I1,T0.en.1", TAME), ChatEncoder(trained("gpt2")))
    rng = np.random.default_rng(4)
    slates = [replace(slate_of(rng, len(TAME)), preference=text, intention=text[::-1]) for text in TEXTS * 3]
    pieces.prepare(slates)

    assert [pieces.prompt(slate) for slate in slates] == [whole(pieces, slate) for slate in slates]
