"""Options of a data module by their bare names, for tests that vary one of many."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datamodules.batching.loaders import LoaderOptions
from datamodules.contract.objectives import NAMED_NEEDS, ModelNeeds
from datamodules.instructions.choice import PromptOptions
from datamodules.instructions.slates import WindowOptions

GROUPS = {"prompts": PromptOptions, "windows": WindowOptions, "loader": LoaderOptions, "needs": ModelNeeds}
NEEDS = ("batch_format", "objective", "shots")  # `task` is the data module's own


def grouped(**options: Any) -> dict[str, Any]:
    """The keywords of a data module, each option in the group that has it."""
    keywords = dict(options)
    for group, kind in GROUPS.items():
        names = NEEDS if kind is ModelNeeds else [field.name for field in fields(kind)]
        inside = {name: keywords.pop(name) for name in names if name in keywords}
        if "objective" in inside:
            asked = NAMED_NEEDS[inside["objective"]]
            inside |= {"task": asked.task, "negatives": asked.negatives}
        if inside:
            keywords[group] = kind(**inside)
    return keywords
