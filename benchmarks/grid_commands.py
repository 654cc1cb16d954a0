"""`instructrec benchmark` and `instructrec report`: the commands that need no torch."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from datamodules.sources import InputError


def run_command(command: str, arguments: list[str]) -> int:
    """Runs `benchmark` or `report`.

    Args:
        command: its name.
        arguments: what follows it.

    Returns:
        0 done, 2 the input is wrong, 1 a cell failed or the grid was stopped.
    """
    options = _parser(command).parse_args(arguments)
    try:
        if command == "benchmark":
            from benchmarks.launchers import choose_launcher
            from benchmarks.runner import run_benchmark

            return run_benchmark(
                options.suite,
                options.out,
                launcher=choose_launcher(
                    options.launcher, processes=options.processes, gpus=options.gpus, options=options.launcher_option
                ),
                dry_run=options.dry_run,
                retry_failed=options.retry_failed,
                max_cells=options.max_cells,
                plugins=options.allow_import,
            )
        from benchmarks.report import replace_between_markers, write_report

        report = write_report(options.directory)
        text = report.text
        print(text)
        if options.wandb:
            from benchmarks.ledger import Ledger
            from benchmarks.wandb_report import log_report, project_of

            project, group = project_of(options.directory) or "instructrec", Ledger(options.directory.absolute()).group
            print(log_report(options.directory, report, project=project, group=group))
        if options.readme:
            # Inside another page the table's headings come one level down from that page's sections.
            replace_between_markers(options.readme, "leaderboard", re.sub(r"(?m)^#+ ", "### ", text))
        if options.publish:
            from benchmarks.publish import publish_runs

            made = publish_runs(options.directory, options.publish)
            print(f"published: {len(made)} finished runs in {options.publish}, a grid's folder to report or go on with")
        print(f"report: {options.directory / 'report.html'}")
    except InputError as error:
        print(f"instructrec: {error}", file=sys.stderr)
        return 2
    return 0


class LineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Prints the line and exits with 2."""
        print(f"instructrec: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = LineParser(prog=f"instructrec {command}")
    if command == "report":
        parser.add_argument("directory", type=Path, help="folder of a grid, as benchmark wrote it")
        parser.add_argument(
            "--wandb", action="store_true", help="log tables and figures as an artifact, as benchmark does"
        )
        parser.add_argument(
            "--publish",
            type=Path,
            metavar="FOLDER",
            help="copy finished runs there, without prompts, titles, ids and paths",
        )
        parser.add_argument("--readme", type=Path, help="put the table between this file's leaderboard markers")
        return parser
    parser.add_argument("suite", type=Path, help="YAML of the grid: axes of configs and overrides")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; the same one continues the grid"
    )
    parser.add_argument("--launcher", default="local", help="where the cells run: local, ray or slurm (default: local)")
    parser.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="ray: address, num_cpus, num_gpus, memory (GiB); slurm: timeout_min, mem_gb, gpus_per_node, partition, ...",
    )
    parser.add_argument(
        "--processes", type=int, help="cells that run at a time (default: 1; with ray and slurm as many as they take)"
    )
    parser.add_argument("--gpus", nargs="*", default=(), help="local: GPUs dealt out to the processes, by number")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the cells' commands, states, predicted memory and time; write nothing",
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells once more")
    parser.add_argument("--max-cells", type=int, default=10_000, help="refuse a larger grid")
    parser.add_argument(
        "--allow-import", action="append", default=[], metavar="PACKAGE", help="configs may name its classes (plug-in)"
    )
    return parser
