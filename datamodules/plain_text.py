"""Text that comes from data, as token ids: never a control token, whatever it spells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of plain texts in one call; special-token strings in them become ordinary tokens.

    A tokenizer may find a control token twice: as a special token, which is switched off, and as a piece of its
    vocabulary, as Unigram models made from SentencePiece do. In the second case the string gets a space after its first
    character; where normalisation makes such a string of another one (`＜/s＞`), its id is left out.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: the texts.
    """
    if not texts:
        return []
    control = control_ids(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(sorted(control))
    # Judged by the string alone and not by its text, so that a text in pieces is what it is as a whole.
    present = [token for token in tokens if any(token in text for text in texts)]
    spelt = [token for token in present if not control.isdisjoint(_ids(tokenizer, [token])[0])]
    found = _ids(tokenizer, [_broken(text, spelt) for text in texts] if spelt else texts)
    return [ids if control.isdisjoint(ids) else [i for i in ids if i not in control] for ids in found]


def control_ids(tokenizer: Any) -> set[int]:
    """Ids with a meaning of their own; the id for unknown text is none, for it is text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids)


def _broken(text: str, tokens: Sequence[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
