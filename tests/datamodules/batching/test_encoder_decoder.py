"""Batches for encoder-decoders, read back by their own rules and compared with pairs encoded one by one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.batching.encoder_decoder import EncoderDecoderCollator
from datamodules.contract.batch import EncoderDecoderBatch
from datamodules.contract.errors import InputError
from datamodules.datasets.movielens import MovieLens100K
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.slates import Slate, SlateMaker
from datamodules.instructions.templates import Instruction, find_template
from datamodules.protocol.apply import apply_protocol
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.sources.pretrained import context_length, is_encoder_decoder, load_tokenizer
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.encoder import SlateEncoder

FORMS = ("matching.en.1", "reranking.en.2", "like.en.1")
Pair = tuple[list[int], list[int]]
"""Ids of a prompt and of one answer."""


@pytest.fixture(params=["t5", "bart"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}")
    return found


@pytest.fixture
def sequences(mini_data: Path) -> Sequences:
    return apply_protocol(MovieLens100K().read(), Protocol(negatives=7))


@pytest.fixture
def maker(sequences: Sequences) -> SlateMaker:
    return SlateMaker(sequences, Protocol(negatives=7), negatives=3, targets=4, seed=0)


def collator_of(
    sequences: Sequences, folder: Path, name: str = "matching.en.1", context: int = 10_000, row_tokens: int = 300
) -> EncoderDecoderCollator:
    template = find_template(name)
    text = SlateText(sequences.titles, template, MovieLens100K.words[template.language], sequences.item_ids)
    tokenizer = load_tokenizer(str(folder))
    slates = SlateEncoder(text, ChatEncoder(tokenizer, apart=True), context)
    return EncoderDecoderCollator(slates, row_tokens, tokenizer.pad_token_id)


def cases(maker: SlateMaker, count: int = 6) -> list[list[Slate]]:
    return [[maker.evaluation(maker.sequences.test, case)] for case in range(count)]


def pairs_of(batch: EncoderDecoderBatch) -> list[Pair]:
    """What each branch reads of the prompts, and what its labels spell, by the attention rules alone."""
    width = batch.token.shape[1]
    columns = torch.arange(width)
    found: dict[int, Pair] = {}
    for place, label, branch in zip(
        batch.label_place.tolist(), batch.label_token.tolist(), batch.label_branch.tolist(), strict=True
    ):
        row, i = divmod(place, width)
        path = ((columns <= i) & (i < batch.end[row])).nonzero().flatten()
        assert batch.depth[row, path].tolist() == list(range(len(path)))
        source = int(batch.prompt_row[row])
        [segment] = batch.segment[row, path].unique().tolist()  # the tokens of one tree read one prompt
        read = batch.prompt_segment[source] == segment
        prompt = batch.prompt[source, read].tolist()
        assert batch.prompt_position[source, read].tolist() == list(range(len(prompt)))
        answer = found.setdefault(branch, (prompt, []))[1]
        assert found[branch][0] == prompt
        assert batch.token[row, path[1:]].tolist() == answer  # below the root stands the answer so far
        answer.append(label)
    assert sorted(found) == list(range(len(batch.branch_case)))
    return [found[branch] for branch in sorted(found)]


def encoded_apart(collator: EncoderDecoderCollator, groups: list[list[Slate]]) -> list[Pair]:
    made = []
    for slate in (slate for group in groups for slate in group):
        [one] = collator.slates.encoder.encode([collator.text.instruction(slate)])
        made += [(one.prompt, answer) for answer in one.answers]
    return made


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_each_branch_reads_its_prompt_and_its_labels_spell_the_answer(
    sequences: Sequences, maker: SlateMaker, folder: Path, name: str, kind: str
) -> None:
    groups = cases(maker) if kind == "evaluation" else [maker.training(window, epoch=0) for window in range(6)]
    collator = collator_of(sequences, folder, name)
    batch = collator(groups)
    expected = encoded_apart(collator, groups)
    assert pairs_of(batch) == expected
    assert batch.tokens_unshared == sum(len(prompt) + len(answer) for prompt, answer in expected)
    assert batch.tokens < batch.tokens_unshared


@pytest.mark.parametrize("row_tokens", [1, 150, 1000])
def test_rows_keep_to_their_budget_and_prompts_are_encoded_once(
    sequences: Sequences, maker: SlateMaker, folder: Path, row_tokens: int
) -> None:
    groups = cases(maker, 8)
    groups = [*groups, *groups[:3]]  # three prompts again
    collator = collator_of(sequences, folder, row_tokens=row_tokens)
    batch = collator(groups)
    expected = encoded_apart(collator, groups)
    prompts = {tuple(prompt) for prompt, _ in expected}
    assert len(prompts) == 8
    assert pairs_of(batch) == expected
    starts = (batch.prompt_position == 0) & (batch.prompt_segment != torch.arange(1, batch.prompt.shape[1] + 1))
    assert int(starts.sum()) == 8
    assert batch.prompt.shape[1] <= max(row_tokens, *map(len, prompts))
    assert (len(batch.prompt) == 8) == (row_tokens == 1)
    assert len(batch.token) == len(batch.prompt)
    trees = sum(
        1 + len({tuple(a[:n]) for p, a in expected if tuple(p) == t for n in range(1, len(a))}) for t in prompts
    )
    assert batch.tokens == sum(map(len, prompts)) + trees  # of a tree each distinct beginning once, and the root


def test_a_catalogue_becomes_several_rows_under_one_prompt(
    sequences: Sequences, maker: SlateMaker, folder: Path
) -> None:
    groups = cases(maker, 3)
    collator = collator_of(sequences, folder)
    whole = collator(groups)
    collator.answer_tokens = 12
    batch = collator(groups)
    assert pairs_of(batch) == pairs_of(whole)
    assert batch.prompt.tolist() == whole.prompt.tolist()
    assert len(batch.token) > len(whole.token)
    assert batch.token.shape[1] <= 24  # two first trees may share a row
    assert batch.tokens_unshared == whole.tokens_unshared


def test_no_row_is_longer_than_the_context(sequences: Sequences, maker: SlateMaker, folder: Path) -> None:
    groups = cases(maker, 8)
    longest = max(len(prompt) for prompt, _ in encoded_apart(collator_of(sequences, folder), groups))
    batch = collator_of(sequences, folder, context=longest, row_tokens=10_000)(groups)
    assert batch.prompt.shape[1] <= longest
    assert batch.token.shape[1] <= longest


def test_a_prompt_may_fill_the_context_alone(sequences: Sequences, maker: SlateMaker, folder: Path) -> None:
    [[slate]] = cases(maker, 1)
    roomy = collator_of(sequences, folder)
    length = len(encoded_apart(roomy, [[slate]])[0][0])
    for context in (length - 1, length):
        collator = collator_of(sequences, folder, context=context)
        batch = collator([[slate]])
        read = pairs_of(batch)
        assert len(read[0][0]) <= context
        assert batch.truncated == (context < length)
        assert (read == encoded_apart(roomy, [[slate]])) == (context == length)
    with pytest.raises(InputError, match=rf"user '{slate.user}': the prompt is \d+ tokens over the backbone's 9 even"):
        collator_of(sequences, folder, context=9)([[slate]])


def test_batches_move_as_one(sequences: Sequences, maker: SlateMaker, tiny_t5: Path) -> None:
    batch = collator_of(sequences, tiny_t5)(cases(maker, 2))
    moved = batch.to("meta")
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.shape) == ("meta", before.shape)
        else:
            assert after == before


# --- text -----------------------------------------------------------------------------------------------------------


def test_prompt_and_answer_are_texts_as_the_tokenizer_makes_them(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(str(folder))
    instruction = Instruction("You recommend.", "Seen: Night. Next?", ("Day", "Day of <|im_end|>"))
    encoder = ChatEncoder(tokenizer, apart=True)
    [made] = encoder.encode([instruction])
    assert made.prompt == tokenizer("You recommend.\nSeen: Night. Next?").input_ids
    assert made.answers[0] == tokenizer("Day").input_ids
    assert made.answers[1].count(tokenizer.eos_token_id) == 1  # the title's own text is no end
    assert made.answers[1][-1] == tokenizer.eos_token_id
    assert (encoder.length(9, 4), encoder.length(3, 4)) == (9, 4)  # whichever is longer must fit


def test_an_answer_without_tokens_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the answer '' has no tokens"):
        ChatEncoder(load_tokenizer(str(folder)), apart=True).encode([Instruction("s", "u", ("Alien", ""))])


def test_a_tokenizer_that_ends_no_text_is_refused(tiny_causal: Path) -> None:
    with pytest.raises(InputError, match="ends no text; an encoder-decoder's tokenizer must"):
        ChatEncoder(load_tokenizer(str(tiny_causal)), apart=True)


def test_the_configuration_tells_the_kind_and_the_context(
    tiny_t5: Path, tiny_bart: Path, tiny_causal: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    kinds = [is_encoder_decoder(str(folder)) for folder in (tiny_t5, tiny_bart, tiny_causal, tiny_encoder)]
    assert kinds == [True, True, False, False]
    assert context_length(str(tiny_t5)) == context_length(str(tiny_bart)) == 512
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    assert context_length(str(tmp_path)) == 10**9  # relative positions have no end
