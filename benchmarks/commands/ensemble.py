"""`instructrec ensemble`: a report row out of several finished runs, from their stored scores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import LineParser
from datamodules.contract.errors import InputError

EPILOG = """\
example: instructrec ensemble results/grid/runs/a results/grid/runs/b --out results/grid/runs/ensemble
then:    instructrec report results/grid

The runs must stand in one table: same protocol, same lists, every candidate's score stored. No model is loaded. What the
ensemble gains by each run is its metric less that of the others without it; members chosen after a look at the test are
chosen on the test.

exit codes: 0 done, 2 the input is wrong"""


def run_command(arguments: Sequence[str]) -> int:
    """Runs `ensemble`."""
    from benchmarks.runs.ensembles import CHOICES, write_ensemble
    from benchmarks.runs.folder import holds_finished_run

    parser = LineParser(
        prog="instructrec ensemble",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder; beside the others, its row is in their table"
    )
    parser.add_argument(
        "--by",
        choices=CHOICES,
        help="what is averaged; default: ranks, or probabilities for Yes and No and for ratings",
    )
    parser.add_argument("--name", default="Ensemble", help="of its row")
    options = parser.parse_args(arguments)
    if holds_finished_run(options.out):
        raise InputError(f"--out {options.out} holds a finished run; name another")
    record = write_ensemble(options.runs, options.out, options.by, options.name)
    told = record["config"]["ensemble"]
    print(
        f"{options.out}: {len(told['members'])} runs, mean of {told['by']}, quality {record['metrics']['test/quality']:.4f}"
    )
    for member in told["members"]:
        alone = "" if member["quality"] is None else f"alone {member['quality']:.4f}, "
        p = f" (p = {member['p']:.3f})" if "p" in member else ""
        print(f"{member['run']}: {alone}gain {member['gain']:+.4f}{p}")
    return 0
