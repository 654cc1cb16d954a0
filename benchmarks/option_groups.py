"""Options of a data set that stand in groups, and may be written without the group's name.

`--data.num_workers 2` is `--data.loader.num_workers 2`. Configs, suites and records from before there were groups know
the short form only; it stays valid for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import signature
from typing import Any

import datamodules
from datamodules.contract.errors import InputError

GROUPS = ("prompts", "windows", "loader")
"""Parameters of `InstructionDataModule` whose options may be written without them."""
LINKED_GROUP = "needs"  # follows the model; runs of before had its options without the group, too
COMMANDS = ("fit", "validate", "test", "predict")


@cache
def group_of() -> dict[str, str]:
    """The group of each option that may be written without it.

    Example:
        >>> group_of()["num_workers"], group_of()["template"]
        ('loader', 'prompts')
    """
    from datamodules.base import InstructionDataModule  # brings torch, which readers of records do without

    parameters = signature(InstructionDataModule.__init__).parameters
    return {field.name: group for group in GROUPS for field in fields(parameters[group].default)}


def spell_out_words(arguments: Sequence[str]) -> list[str]:
    """A command line with every option of a data set below its group.

    Example:
        >>> spell_out_words(["fit", "--data.num_workers=2", "--data.cell", "P1,I0,T3"])
        ['fit', '--data.loader.num_workers=2', '--data.cell', 'P1,I0,T3']
    """
    pattern = re.compile(rf"--data\.(init_args\.)?({'|'.join(group_of())})(?=$|[=.+])")
    return [
        pattern.sub(lambda found: f"--data.{found[1] or ''}{group_of()[found[2]]}.{found[2]}", word)
        if pattern.match(word)
        else word
        for word in arguments
    ]


def spell_out(content: Any) -> Any:
    """A YAML text's content, with every option of a data set below its group; all else stays as it is.

    Example:
        >>> spell_out({"data": {"class_path": "Steam", "init_args": {"num_workers": 2, "cell": None}}})
        {'data': {'class_path': 'Steam', 'init_args': {'cell': None, 'loader': {'num_workers': 2}}}}
    """
    if not isinstance(content, dict):
        return content
    if str(content.get("class_path")).rpartition(".")[2] in datamodules.__all__:
        return _grouped(content)
    return {
        key: _grouped(value)
        if key == "data" and isinstance(value, dict)
        else spell_out(value)
        if key in COMMANDS
        else value
        for key, value in content.items()
    }


def _grouped(options: dict[str, Any]) -> dict[str, Any]:
    grouped = {key: value for key, value in options.items() if key not in group_of()}
    if isinstance(grouped.get("init_args"), dict):
        grouped["init_args"] = _grouped(grouped["init_args"])
    for key in options.keys() & group_of().keys():
        group = group_of()[key]
        beside = grouped.get(group, {})
        if not isinstance(beside, dict) or key in beside:
            raise InputError(f"data.{key} and data.{group} both say it; keep one")
        grouped[group] = {**beside, key: options[key]}
    return grouped


def without_groups(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a saved run without the names of their groups, as runs of before have them.

    Example:
        >>> without_groups({"cell": None, "prompts": {"template": "like.en.2"}})
        {'cell': None, 'template': 'like.en.2'}
    """
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= value if key in (*GROUPS, LINKED_GROUP) and isinstance(value, Mapping) else {key: value}
    return flat
