"""Text that comes from data, as token ids: never a control token, whatever it spells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.sources import InputError


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts without special tokens; special-token strings in them become ordinary tokens.

    A tokenizer may find a control token twice: as a special token, which is switched off, and as a piece of its
    vocabulary, as Unigram models that were converted from SentencePiece do. In the second case the string gets a space
    after its first character, which is the only change that a text sees.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: the texts.

    Raises:
        InputError: a text cannot be spelt without a control token.
    """
    found: list[list[int]] = list(tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids)
    control = control_ids(tokenizer)
    for number, ids in enumerate(found):
        if not control.isdisjoint(ids):
            text = _broken(texts[number], tokenizer.convert_ids_to_tokens(sorted(control)))
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
            if not control.isdisjoint(ids):
                raise InputError(f"the tokenizer makes control tokens of the text {texts[number][:80]!r}")
            found[number] = ids
    return found


def control_ids(tokenizer: Any) -> set[int]:
    """Ids with a meaning of their own; the id for unknown text is none, for it is text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _broken(text: str, tokens: list[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
    return text
