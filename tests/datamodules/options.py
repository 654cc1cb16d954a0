"""Options of a data module by their bare names, for tests that vary one of many."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.objectives import NAMED_NEEDS, ModelNeeds
from datamodules.instructions.choice import PromptOptions
from datamodules.instructions.slates import WindowOptions

GROUPS = {"prompts": PromptOptions, "windows": WindowOptions, "loader": LoaderOptions, "needs": ModelNeeds}


def grouped(**options: Any) -> dict[str, Any]:
    """The keywords of a data module, each option in the group that has it."""
    keywords = dict(options)
    for group, kind in GROUPS.items():
        inside = {name: keywords.pop(name) for name in [field.name for field in fields(kind)] if name in keywords}
        if "objective" in inside:
            inside["objective"] = NAMED_NEEDS[inside["objective"]]
        if inside:
            keywords[group] = kind(**inside)
    return keywords
