"""The words of a data set that the user brings: what its items are and what users do with them."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.sources import InputError

GENERIC: dict[str, dict[str, str]] = {
    "en": {"noun": "item", "nouns": "items", "consumed": "chose"},
    "zh": {"noun": "物品", "nouns": "物品", "consumed": "选择过"},
}


def worded(wording: Mapping[str, str] | None) -> dict[str, dict[str, str]]:
    """The generic words by language, with the user's own in place of them.

    Args:
        wording: some of `noun`, `nouns`, `consumed`, in the language of the instructions.

    Raises:
        InputError: it has another key.

    >>> worded({"nouns": "games"})["en"]
    {'noun': 'item', 'nouns': 'games', 'consumed': 'chose'}
    """
    own = dict(wording or {})
    for key in own:
        if key not in GENERIC["en"]:
            raise InputError(f"data.wording has the key {key!r}; the keys are {', '.join(GENERIC['en'])}")
    return {language: {**words, **own} for language, words in GENERIC.items()}
