"""The stages of a data module: its data frozen under the protocol, and the collator that a model's batch format asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl

from datamodules.batching.catalogue import CatalogueCollator
from datamodules.batching.encoder_decoder import EncoderDecoderCollator
from datamodules.batching.item_codes import InteractionCollator
from datamodules.batching.prompt_trees import PromptTreeCollator
from datamodules.batching.tagged_text import TaggedTextCollator
from datamodules.contract.batch import BatchFormat
from datamodules.contract.errors import InputError
from datamodules.instructions.choice import SEPARATORS, Prompting
from datamodules.instructions.preferences import explicit_texts, read_notes
from datamodules.instructions.prompts import SlateText
from datamodules.instructions.slates import SlateMaker, WindowOptions
from datamodules.instructions.templates import Demonstration
from datamodules.items.base import ItemForm
from datamodules.protocol.apply import frozen_sequences, further_sequences
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from datamodules.sources.pretrained import context_length, is_encoder_decoder, load_tokenizer, vocabulary_size
from datamodules.tables.interactions import Interactions
from datamodules.tokens.chat import ChatEncoder
from datamodules.tokens.encoder import SlateEncoder

Collator = PromptTreeCollator | CatalogueCollator | EncoderDecoderCollator | TaggedTextCollator | InteractionCollator


@dataclass(frozen=True)
class FrozenData:
    """A data set under its protocol: what exists once the raw files are read, before any tokenizer is loaded.

    Attributes:
        sequences: users' events and the frozen cases.
        slates: makes cases of them.
        text: writes prompts.
        about: items with their categories, and the users' profiles: what results are told apart by.
        further: the same under each rule of `protocol.also`: other lists, all else alike.
    """

    sequences: Sequences
    slates: SlateMaker
    text: SlateText
    about: tuple[pl.DataFrame, pl.DataFrame | None]
    further: dict[str, Sequences]


def freeze_data(
    data: Interactions,
    protocol: Protocol,
    prompting: Prompting,
    windows: WindowOptions,
    words: dict[str, str],
    form: ItemForm,
    seed: int,
) -> FrozenData:
    """Applies a protocol to a data set.

    Raises:
        InputError: the data lacks what the instructions or the protocol need.
    """
    if prompting.preference_rule or prompting.intention_rule:
        data = replace(data, interactions=data.interactions.with_row_index("row"))
    sequences = frozen_sequences(data, protocol)
    slates = SlateMaker(
        sequences,
        protocol,
        windows.train_negatives or 0,
        cast(int, windows.targets_per_window),
        seed,
        shared=windows.window_history == "shared",
        least=int(prompting.history_needed),
        choice=prompting.choice and replace(prompting.choice, seed=seed),
        history=windows.train_history,
        shown=prompting.shown_history,
    )
    text = make_text(data, sequences, prompting, words, form)
    return FrozenData(sequences, slates, text, data.about, further_sequences(data, protocol, sequences))


def make_text(
    data: Interactions, sequences: Sequences, prompting: Prompting, words: dict[str, str], form: ItemForm
) -> SlateText:
    """What writes the prompts.

    Args:
        data: the typed tables; interactions with a column `row` where preferences or intentions are told.
        sequences: made of them.
        prompting: the instructions.
        words: the domain's words in their language.
        form: how an item is written.

    Raises:
        InputError: a task needs ratings and the data lacks some or has others, or lacks what it promised.
    """
    rated = bool({"like", "rating"} & prompting.forms)
    if rated and np.isnan(sequences.rating).any():
        raise InputError(f"task {prompting.template.form!r} needs ratings, and the data lacks some")
    if "rating" in prompting.forms and len(beyond := np.flatnonzero((sequences.rating < 0) | (sequences.rating > 5))):
        raise InputError(
            f"task 'rating' answers 1 to 5, and {len(beyond)} of the data's ratings are beyond, the first"
            f" {sequences.rating[beyond[0]]:g}; scale them in the table, or use another task"
        )
    explicit = None
    if prompting.preference_rule or prompting.intention_rule:
        explicit = explicit_texts(
            data,
            sequences,
            preference_rule=prompting.preference_rule,
            intention_rule=prompting.intention_rule,
            separator=SEPARATORS[prompting.template.language],
            limit=prompting.texts.limit,
            notes=read_notes(prompting.texts.annotations) if prompting.texts.annotations else None,
        )
    shared: dict[str, Any] = {"words": words, "item_ids": sequences.item_ids, "explicit": explicit}
    shared["token_start"] = form.token_start
    shared["ratings"] = sequences.rating if "rating" in prompting.forms else None
    catalogue = pl.DataFrame({"item": sequences.item_ids}).join(
        data.items, on="item", how="left", maintain_order="left"
    )
    written = form.write(catalogue)
    others = tuple(SlateText(written, template, **shared) for template in prompting.others)
    return SlateText(written, prompting.template, **shared, others=others)


def first_item(text: SlateText, backbone: str) -> int | None:
    """Token id of item 0, behind the backbone's vocabulary; None where items are written in words.

    Raises:
        InputError: the backbone's configuration does not say how many tokens it knows.
    """
    if text.token_start is None:
        return None
    size = vocabulary_size(backbone)
    if size is None:
        raise InputError(f"data.items Token: the configuration of backbone {backbone!r} names no vocab_size; use Title")
    return size


def make_collator(
    text: SlateText,
    batch_format: BatchFormat,
    backbone: str | None,
    row_tokens: int,
    shown: Sequence[Demonstration] = (),
    user_ids: Sequence[str] = (),
) -> Collator:
    """Makes batches of a format.

    Raises:
        InputError: the format needs a backbone and there is none.
    """
    if batch_format in ("interactions", "sequences"):
        return InteractionCollator(text, user_ids)
    if backbone is None:
        raise InputError("data.backbone is not set; give the model's backbone")
    tokenizer, context = load_tokenizer(backbone), context_length(backbone)
    apart = is_encoder_decoder(backbone)
    causal_only = {"data.items Token": text.token_start is not None}
    causal_only["data.prompts.paraphrase dense"] = any(one.template.entry for one in (text, *text.others))
    for name in (name for name, asked in causal_only.items() if asked and (apart or batch_format == "tagged_text")):
        raise InputError(
            f"{name} needs a causal language model that answers in text, and {backbone!r} is another; leave it out"
        )
    if text.token_start is not None and shown:
        raise InputError("model.shots shows solved cases in words, which data.items Token does not have; use Title")
    if batch_format == "tagged_text":
        return TaggedTextCollator(text, tokenizer, context, row_tokens)
    slates = SlateEncoder(
        text, ChatEncoder(tokenizer, apart=apart, demonstrations=shown), context, first_item(text, backbone)
    )
    if apart:
        return EncoderDecoderCollator(slates, row_tokens, tokenizer.pad_token_id)
    trees = PromptTreeCollator(slates, row_tokens)
    # A template that lists the candidates cannot list a catalogue.
    return CatalogueCollator(trees, slates, tokenizer.pad_token_id) if text.template.form == "matching" else trees
