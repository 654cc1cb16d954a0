"""Demonstrations stand before every prompt, are drawn by the seed, and hold nothing that is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.prompts import draw_demonstrations
from datamodules.protocol.rules import Protocol
from datamodules.sources.pretrained import load_tokenizer
from datamodules.tokens.chat import ChatEncoder
from tests.datamodules.options import grouped


def data(folder: Path, **options: Any) -> MovieLens100K:
    made = MovieLens100K(backbone=str(folder), protocol=Protocol(negatives=5), **grouped(**options))
    made.setup()
    return made


def first_prompts(made: MovieLens100K, count: int = 4) -> list[str]:
    encoder = made.collator.slates  # type: ignore[union-attr]
    slates = [made.slates.evaluation(made.cases("test"), case) for case in range(count)]
    return [encoder.encoder.tokenizer.decode(one.prompt) for one in encoder.encode(slates)]


@pytest.fixture
def of(mini_data: Path, tiny_causal: Path) -> Any:
    return lambda **options: data(tiny_causal, **{"task": "matching"} | options)


@pytest.mark.parametrize("task", ["matching", "like", "reranking"])
def test_they_are_whole_turns_before_the_question(of: Any, task: str) -> None:
    plain, shown = first_prompts(of(task=task)), first_prompts(of(task=task, shots=2))
    for one, other in zip(plain, shown, strict=True):
        assert other.count("<|im_start|>user\n") == 3
        assert other.count("<|im_start|>assistant\n") == 3
        own = one.split("<|im_start|>user\n")[1]
        assert other.endswith(f"<|im_end|>\n<|im_start|>user\n{own}"), "a case's own question is as it was"
        assert other.split("<|im_start|>user\n")[1:3] == shown[0].split("<|im_start|>user\n")[1:3]
    assert shown[0].startswith(plain[0].split("<|im_start|>user\n")[0])


def test_answers_are_right_and_of_training_events(of: Any) -> None:
    made = of(shots=3)
    sequences = made.sequences
    drawn = draw_demonstrations(made.slates, made.collator.slates.text, 3, made.seed)
    assert len({each.user for each in drawn}) == 3
    for each in drawn:
        user = sequences.user_ids.index(each.user)
        last = int(sequences.train_end[user]) - 1
        assert each.answer == made.answer_text(int(sequences.item[last]))
        held_out = sequences.titles[int(sequences.item[sequences.start[user + 1] - 1])]
        history = each.instruction.user
        assert history.count(";") == last - int(sequences.start[user]) - 1, "the events before it, and no later one"
        assert each.answer != held_out or sequences.titles.count(held_out) > 1


def test_users_of_no_case_come_first(of: Any) -> None:
    made = MovieLens100K(
        backbone=of().backbone,
        protocol=Protocol(negatives=5, test_users=4, validation_users=4),
        needs=ModelNeeds(shots=5),
    )
    made.setup()
    drawn = draw_demonstrations(made.slates, made.collator.slates.text, 5, 0)  # type: ignore[union-attr]
    evaluated = {made.sequences.user_ids[int(u)] for s in ("validation", "test") for u in made.cases(s).user}  # type: ignore[arg-type]
    assert evaluated.isdisjoint(each.user for each in drawn)


def test_the_seed_decides_and_nothing_else(of: Any) -> None:
    assert first_prompts(of(shots=3, seed=1)) == first_prompts(of(shots=3, seed=1, batch_size=1, eval_batch_size=3))
    assert first_prompts(of(shots=3, seed=1)) != first_prompts(of(shots=3, seed=2))


def test_the_tree_holds_them_once(of: Any) -> None:
    plain, shown = (next(iter(of(shots=shots).test_dataloader())) for shots in (0, 3))
    added = shown.tokens - plain.tokens
    assert shown.trunk - plain.trunk == added, "the demonstrations are read once for all users of a batch"
    assert shown.tokens_unshared - plain.tokens_unshared == added * len(shown.branch_case)


def test_encoder_decoders_read_them_as_text(mini_data: Path, tiny_t5: Path) -> None:
    plain, shown = first_prompts(data(tiny_t5)), first_prompts(data(tiny_t5, shots=1))
    for one, other in zip(plain, shown, strict=True):
        system, question = one.split("\n", 1)
        assert other.startswith(f"{system}\n")
        assert other.endswith(f"\n\n{question}")


def test_too_many_are_refused(of: Any) -> None:
    with pytest.raises(InputError, match="model.shots is 100, and the data has 24 users"):
        of(shots=100)


def test_a_template_that_drops_earlier_turns_is_refused(of: Any, tiny_causal: Path) -> None:
    made = of()
    drawn = draw_demonstrations(made.slates, made.collator.slates.text, 1, 0)
    tokenizer = load_tokenizer(str(tiny_causal))
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}|{{ messages[-2]['content'] }}|{{ messages[-1]['content'] }}#"
    )
    with pytest.raises(InputError, match="drops an earlier turn"):
        ChatEncoder(tokenizer, demonstrations=drawn)
    tokenizer.chat_template = None
    encoder = ChatEncoder(tokenizer, demonstrations=drawn)
    assert tokenizer.decode(encoder.prompt_ids([], [])).count(tokenizer.eos_token) == 1
