"""jsonargparse still has what this project uses of it beyond its public interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentError, ArgumentParser, _common, _typehints, _util

from datamodules.contract.compat.jsonargparse import accept_nested_null, actions_of, restrict_subclasses

MOVED = (
    "jsonargparse has moved {}; mend datamodules/contract/compat/jsonargparse.py, or lower the bound in pyproject.toml"
)


class Base:
    pass


class First(Base):
    def __init__(self, size: int = 1) -> None:
        self.size = size


class Second(Base):
    pass


@dataclass(frozen=True)
class Limits:
    least: int = 1
    most: int | None = None


class Limited(Base):
    def __init__(self, limits: Limits = Limits(most=3)) -> None:  # frozen
        self.limits = limits


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a fresh process has it, whatever commands ran in this one before."""
    monkeypatch.setitem(_common.parsing_settings, "import_path_verdicts", {})
    before, nested = _typehints.get_all_subclass_paths, _util.NestedArg
    yield
    _typehints.get_all_subclass_paths = before
    _typehints.NestedArg = _util.NestedArg = nested


def test_a_bare_name_means_accepted_subclasses_only() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Base, "thing")
    restrict_subclasses(lambda path: path.endswith("First"))
    chosen = parser.parse_args(["--thing=First", "--thing.size=3"])
    moved = MOVED.format("the lookup of bare class names, `_typehints.get_all_subclass_paths`")
    assert chosen.thing.class_path.endswith("First"), moved
    try:
        refused = parser.parse_args(["--thing=Second"]) is None
    except ArgumentError:
        refused = True
    assert refused, moved


def test_options_of_a_parser_and_its_commands_are_listed() -> None:
    parser, command = ArgumentParser(), ArgumentParser()
    command.add_argument("--inner", type=int)
    parser.add_argument("--outer", type=int)
    parser.add_subcommands(required=False).add_subcommand("run", command)
    options = {option for action in actions_of(parser) for option in action.option_strings}
    assert {"--outer", "--inner"} <= options, MOVED.format("the list of options, `ArgumentParser._actions`")


def test_null_is_null_in_a_group_inside_a_class() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Base, "thing")
    restrict_subclasses(lambda path: path.endswith("Limited"))
    accept_nested_null()
    words = ["--thing=Limited", "--thing.limits.most=7", "--thing.limits.least=2"]
    moved = MOVED.format("how an option inside a class is handed on, `NestedArg`")
    for most, rest in ((7, []), (None, ["--thing.limits.most=null"])):
        limits = parser.parse_args([*words, *rest]).thing.init_args.limits
        assert (limits.least, limits.most) == (2, most), moved
