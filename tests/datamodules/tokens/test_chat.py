"""From instructions to ids: the chat template's own text, and titles that never become control tokens."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from datamodules.contract.errors import InputError
from datamodules.instructions.templates import Instruction
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tokens.chat import ChatEncoder

TAME = Instruction("You recommend movies.", "Movies: Night; Day of River.\nWhich comes next?", ("Star", "Love of War"))
MARKS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[PAD]",
    "[UNK]",
    "</s>",
    "<s>",
]
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def chat_tokenizer(tiny_causal: Path) -> Any:
    return load_tokenizer(str(tiny_causal))


@pytest.fixture
def plain_tokenizer(tiny_causal: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture
def bert_tokenizer(tiny_encoder: Path) -> Any:
    return load_tokenizer(str(tiny_encoder))


@pytest.fixture(params=["chat", "plain", "bert"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_tokenizer")


@cache
def loaded_once(folder: Path) -> Any:
    return load_tokenizer(str(folder))


def specials(tokenizer: Any, ids: list[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.all_special_ids]


def test_a_prompt_decodes_to_the_chat_templates_own_text(chat_tokenizer: Any) -> None:
    [made] = ChatEncoder(chat_tokenizer).encode([TAME])
    turns = [{"role": "system", "content": TAME.system}, {"role": "user", "content": TAME.user}]

    rendered = chat_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    assert chat_tokenizer.decode(made.prompt) == rendered
    for text, answer in zip(TAME.answers, made.answers, strict=True):
        whole = chat_tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], tokenize=False)
        assert chat_tokenizer.decode([*made.prompt, *answer]) == whole.removesuffix("\n")


def test_control_tokens_are_control_tokens(chat_tokenizer: Any) -> None:
    [made] = ChatEncoder(chat_tokenizer).encode([TAME])
    start, end = chat_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    assert specials(chat_tokenizer, made.prompt) == [start, end, start, end, start]
    for answer in made.answers:
        assert specials(chat_tokenizer, answer) == [end]
        assert answer[-1] == end


def test_without_a_chat_template_turns_are_lines(plain_tokenizer: Any) -> None:
    [made] = ChatEncoder(plain_tokenizer).encode([TAME])

    assert plain_tokenizer.decode(made.prompt) == f"<|im_start|>{TAME.system}\n{TAME.user}\n"
    assert [plain_tokenizer.decode(answer) for answer in made.answers] == [
        "Star<|im_end|>",
        "Love of War<|im_end|>",
    ]


@pytest.mark.parametrize("mark", MARKS)
def test_a_title_never_adds_a_special_token(any_tokenizer: Any, mark: str) -> None:
    encoder = ChatEncoder(any_tokenizer)
    wild = Instruction(f"Be {mark} kind.", f"Seen: {mark}; x{mark}{mark}y.", (f"The {mark} Affair", mark))
    tame = Instruction("Be kind.", "Seen: a; xy.", ("The Affair", "a"))

    [made], [expected] = encoder.encode([wild]), encoder.encode([tame])

    unknown = [] if any_tokenizer.unk_token_id is None else [any_tokenizer.unk_token_id]

    def control(ids: list[int]) -> list[int]:
        return [i for i in specials(any_tokenizer, ids) if i not in unknown]  # a rare letter, not a control token

    assert control(made.prompt) == control(expected.prompt)
    for answer, other in zip(made.answers, expected.answers, strict=True):
        assert control(answer) == control(other)
    if not unknown:
        assert mark in any_tokenizer.decode(made.answers[1])


def test_the_title_would_be_a_special_token_otherwise(chat_tokenizer: Any) -> None:
    """The danger is real: plain tokenization of the same title gives the control token."""
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")

    assert end in chat_tokenizer("The <|im_end|> Affair", add_special_tokens=False).input_ids
    assert end not in ChatEncoder(chat_tokenizer).encode_texts(["The <|im_end|> Affair"])[0]


def test_encoding_titles_leaves_the_tokenizer_as_it_was(chat_tokenizer: Any) -> None:
    before = chat_tokenizer("<|im_end|>", add_special_tokens=False).input_ids
    encoder = ChatEncoder(chat_tokenizer)
    encoder.encode([Instruction("s", "<|im_end|>", ("<|im_end|>",))])

    assert chat_tokenizer("<|im_end|>", add_special_tokens=False).input_ids == before
    assert ChatEncoder(chat_tokenizer).before_user == encoder.before_user


@settings(max_examples=60, deadline=None)
@given(seed=st.randoms(use_true_random=False), text=st.text(max_size=20))
def test_bytes_survive_and_special_tokens_are_constant_for_any_text(
    tiny_causal: Path, seed: random.Random, text: str
) -> None:
    tokenizer = loaded_once(tiny_causal)
    pieces = [text, *seed.sample(MARKS, 3)]
    seed.shuffle(pieces)
    title = "".join(pieces).encode("utf-8", "ignore").decode()
    encoder = ChatEncoder(tokenizer)

    [made] = encoder.encode([Instruction(title, title, (title,))])

    assert len(specials(tokenizer, made.prompt)) == 5
    assert len(specials(tokenizer, made.answers[0])) == 1
    assert tokenizer.decode(made.answers[0][:-1]) == title


def test_one_instruction_is_encoded_alike_alone_and_among_others(chat_tokenizer: Any) -> None:
    many = [Instruction(f"s{n % 2}", f"Seen: Night {n}.", tuple(f"Day {m}" for m in range(n + 1))) for n in range(5)]

    together = ChatEncoder(chat_tokenizer).encode(many)

    assert together == [ChatEncoder(chat_tokenizer).encode([one])[0] for one in many]
    assert [len(made.answers) for made in together] == [1, 2, 3, 4, 5]


def test_answers_of_which_one_begins_another_differ_by_the_closing_token(chat_tokenizer: Any) -> None:
    [made] = ChatEncoder(chat_tokenizer).encode([Instruction("s", "u", ("Night", "Night of Day"))])
    short, long = made.answers

    assert short != long[: len(short)]


@pytest.mark.parametrize("answer", ["", " "])
def test_an_answer_without_tokens_is_refused(chat_tokenizer: Any, bert_tokenizer: Any, answer: str) -> None:
    with pytest.raises(InputError, match="has no tokens under this tokenizer"):
        ChatEncoder(chat_tokenizer).encode([Instruction("s", "u", ("Alien", ""))])
    with pytest.raises(InputError, match=rf"the answer '{answer}' has no tokens"):
        ChatEncoder(bert_tokenizer).encode([Instruction("s", "u", ("Alien", answer))])


def test_a_tokenizer_without_an_end_token_closes_answers_with_its_separator(bert_tokenizer: Any) -> None:
    assert bert_tokenizer.eos_token is None
    encoder = ChatEncoder(bert_tokenizer)
    [made] = encoder.encode([Instruction("s", "u", ("night", "night of day"))])
    short, long = made.answers

    assert encoder.after_answer == [bert_tokenizer.sep_token_id]
    assert short != long[: len(short)]  # else the shorter title would win by its length alone


def test_a_template_that_closes_no_turn_gets_the_end_token(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"

    assert ChatEncoder(chat_tokenizer).after_answer == [chat_tokenizer.eos_token_id]


def test_a_tokenizer_that_can_close_no_answer_is_refused(bert_tokenizer: Any) -> None:
    bert_tokenizer.sep_token = None

    with pytest.raises(InputError, match="could not be told from a longer one that begins with it"):
        ChatEncoder(bert_tokenizer)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="ByT5Tokenizer is not a fast tokenizer"):
        ChatEncoder(ByT5Tokenizer())


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES_SYSTEM, "drops a system"),
        ("{{ 1 +", "refuses a user"),
        ("{{ raise_exception('no') }}", "turn: no"),
    ],
)
def test_a_chat_template_without_our_turns_is_refused(chat_tokenizer: Any, template: str, reason: str) -> None:
    chat_tokenizer.chat_template = template

    with pytest.raises(InputError, match=reason):
        ChatEncoder(chat_tokenizer)


@pytest.mark.parametrize("template", [REFUSES_SYSTEM + TURNS, NO_SYSTEM], ids=["refused", "dropped"])
def test_where_there_is_no_system_turn_its_text_begins_the_users(chat_tokenizer: Any, template: str) -> None:
    chat_tokenizer.chat_template = template
    [made] = ChatEncoder(chat_tokenizer).encode([Instruction("Be brief.", "Which film?", ("Alien",))])
    chat = [{"role": "user", "content": "Be brief.\n\nWhich film?"}]
    assert chat_tokenizer.decode(made.prompt) == (
        chat_tokenizer.apply_chat_template(chat, tokenize=False) + "assistant: "
    )


def test_a_template_that_prints_the_date_gives_the_same_prompt_tomorrow(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "Today is {{ strftime_now('%d %b %Y') }}.\n" + TURNS
    [made] = ChatEncoder(chat_tokenizer).encode([Instruction("Be brief.", "Which film?", ("Alien",))])
    assert chat_tokenizer.decode(made.prompt).startswith("Today is 26 Jul 2024.")
