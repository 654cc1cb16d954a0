"""Commands that need a data set and no model: their config, under the same fences as a run's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from datamodules.contract.errors import InputError, first_input_error


def configured_data(
    command: str, description: str, epilog: str, arguments: Sequence[str], add_options: Callable[[Any], None]
) -> tuple[Any, Any]:
    """The data module of a command line, and the command's own options.

    Returns:
        The `InstructionDataModule`, not set up, and the options as a namespace.
    """
    from benchmarks.cli.allowed_imports import HELP, allow_imports, refuse_code, take_plugins
    from benchmarks.cli.app import InstructRecParser, quieten
    from benchmarks.cli.checks import check_raw_input
    from benchmarks.cli.errors import one_line
    from benchmarks.option_groups import spell_out_words
    from datamodules.base import InstructionDataModule

    rest, plugins = take_plugins(list(arguments))
    rest = check_raw_input(rest)
    allow_imports(plugins)
    quieten()
    parser = InstructRecParser(
        prog=f"instructrec {command}",
        description=description,
        epilog=f"{epilog}\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", action="config", help="data config, such as configs/data/ml_100k.yaml")
    add_options(parser)
    parser.add_subclass_arguments(InstructionDataModule, "data", required=True, help="data set")
    config = parser.parse_args(spell_out_words(rest))
    refuse_code(config.data)
    try:
        objects = parser.instantiate(config)
    except (ImportError, TypeError, ValueError) as error:
        wrong = first_input_error(error)
        raise wrong or InputError(f"the config cannot be built: {one_line(str(error), parser)}") from error
    return objects.data, config
