"""`instructrec reproduce NAME`: runs what is missing of a card's grid, and writes its page, CSV and JSON."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.runs import Run, read_suite
from benchmarks.commands import LineParser
from benchmarks.metric_names import metric_label
from benchmarks.report.write import replace_between_markers
from benchmarks.reproduce.cards import Card, card_names, load_card
from benchmarks.reproduce.verdicts import Outcome, compare, deviations, predicted
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

_COSTS = ("trainable_parameters", "train_seconds", "test_seconds", "peak_memory_bytes")


def run_command(arguments: list[str]) -> int:
    """Runs `reproduce`; returns 1 where a cell failed or the grid was stopped."""
    options = _parser().parse_args(arguments)
    if options.name is None:
        for name in card_names():
            card = load_card(name)
            print(f"{name:<24} {card.title} ({', '.join(card.sizes)})")
        return 0
    card = load_card(options.name)
    if options.size not in card.sizes:
        raise InputError(f"--size {options.size}: {card.name} has {', '.join(card.sizes)}")
    return _run(card, options)


def _run(card: Card, options: argparse.Namespace) -> int:
    size = card.sizes[options.size]
    out: Path = options.out or Path("results", "reproduce", f"{card.name}-{options.size}")
    print(f"{card.title} ({card.source})\nsize {options.size}: {size.says}")
    if size.cost is not None:
        print(f"predicted for each run: {predicted(size.cost)}")
    status = 0
    if not options.table_only:
        from benchmarks.commands.benchmark import run_benchmark
        from benchmarks.launchers import choose_launcher

        launcher = choose_launcher(
            options.launcher, processes=options.processes, gpus=options.gpus, options=options.launcher_option
        )
        status = run_benchmark(
            size.suite, out, launcher=launcher, dry_run=options.dry_run, retry_failed=options.retry_failed
        )
    if not options.dry_run:
        print(write_reproduction(card, options.size, out))
        if options.readme:
            table = render_table(compare(card, options.size, read_suite(out).runs), run_only=True)
            replace_between_markers(options.readme, f"reproduce:{card.name}", table)
        print(f"reproduction: {out / 'reproduction.md'}, .csv and .json")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(prog="instructrec reproduce")
    parser.add_argument("name", nargs="?", help="a published table; without a name all are listed")
    parser.add_argument("--out", type=Path, help="folder of the grid; the same one continues it")
    parser.add_argument("--size", default="small", help="small: what a CPU can do; paper: the paper's own (a GPU)")
    parser.add_argument("--dry-run", action="store_true", help="print commands and predicted cost; write nothing")
    parser.add_argument("--table-only", action="store_true", help="run nothing; write the tables of what is there")
    parser.add_argument(
        "--readme", type=Path, help="put the rows that were run between this file's markers of the name"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells once more")
    parser.add_argument("--launcher", default="local", help="local, ray or slurm, as for benchmark")
    parser.add_argument("--launcher-option", action="append", default=[], metavar="KEY=VALUE", help="as for benchmark")
    parser.add_argument("--processes", type=int, help="cells that run at a time")
    parser.add_argument("--gpus", nargs="*", default=(), help="GPUs dealt out to the processes, by number")
    return parser


def write_reproduction(card: Card, size: str, out: Path) -> str:
    """Writes `reproduction.md`, `.csv` and `.json` into a grid's folder; returns the page.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "runs" / "waiting").mkdir(parents=True)
        >>> page = write_reproduction(load_card("instructrec_games"), "small", folder)
        >>> sorted(path.name for path in folder.glob("reproduction.*"))
        ['reproduction.csv', 'reproduction.json', 'reproduction.md']
    """
    suite = read_suite(out)
    outcomes = compare(card, size, suite.runs)
    different = deviations(card, suite.runs)
    page = render_markdown(card, size, outcomes, different)
    write_atomic(out / "reproduction.md", page)
    write_atomic(out / "reproduction.csv", render_csv(outcomes))
    write_atomic(out / "reproduction.json", render_json(card, size, outcomes, different, suite.runs))
    return page


def render_markdown(card: Card, size: str, outcomes: Sequence[Outcome], different: Sequence[str]) -> str:
    """The page.

    Example:
        >>> card = load_card("instructrec_games")
        >>> print(render_markdown(card, "small", [], []).splitlines()[0])
        # InstructRec, Table 6: Amazon Video Games, sequential recommendation <P1,I0,T3>
    """
    counts = Counter(outcome.verdict for outcome in outcomes)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    lines = [
        f"# {card.title}",
        "",
        f"Published: {card.source}. Protocol: {card.protocol}",
        "",
        f"Size `{size}`: {card.sizes[size].says}",
        "",
        f"Of {len(outcomes)} numbers: {summary or 'none'}.",
        "",
        render_table(outcomes),
        "",
        "`match`: the printed digits are equal, or the difference is at most 1 %. `within noise`: it is within the 95 %"
        " interval over users or cases (bootstrap), widened by 1.96 standard deviations between seeds and by the noise of"
        " the published number where its cases are others.",
    ]
    cautions = [f"- {number.method}: {number.caution}" for number in card.numbers if number.caution]
    lines += ["", "Cautions:", "", *cautions] if cautions else []
    lines += ["", "Done otherwise than published:", "", *(f"- {text}" for text in different)] if different else []
    return "\n".join(lines) + "\n"


def render_table(outcomes: Sequence[Outcome], *, run_only: bool = False) -> str:
    """The numbers as a Markdown table.

    Example:
        >>> print(render_table([]).splitlines()[0])
        | method | metric | expected | certainty | got | 95 % interval | seeds | verdict |
    """
    lines = [_line(outcome) for outcome in outcomes if outcome.got is not None or not run_only]
    head = ["| method | metric | expected | certainty | got | 95 % interval | seeds | verdict |"]
    return "\n".join([*head, "|---|---|---:|---|---:|---|---:|---|", *lines])


def _line(outcome: Outcome) -> str:
    digits = outcome.digits
    interval = "–" if math.isnan(outcome.low) else f"[{outcome.low:.{digits}f}, {outcome.high:.{digits}f}]"
    verdict = f"{outcome.verdict}: {outcome.reason}" if outcome.reason else f"**{outcome.verdict}**"
    spread = "" if outcome.spread is None else f" (± {outcome.spread:.{digits}f})"
    cells = (
        outcome.method,
        metric_label(outcome.metric),
        _number(outcome.expected, digits),
        outcome.certainty,
        _number(outcome.got, digits),
        interval,
        f"{outcome.seeds or '–'}{spread}",
        verdict,
    )
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def render_csv(outcomes: Sequence[Outcome]) -> str:
    """One line a number.

    Example:
        >>> render_csv([]).strip().split(",")[:3]
        ['method', 'metric', 'expected']
    """
    names = list(Outcome.__dataclass_fields__)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for outcome in outcomes:
        values = (_plain(getattr(outcome, name)) for name in names)
        writer.writerow("" if value is None else value for value in values)
    return text.getvalue()


def render_json(
    card: Card, size: str, outcomes: Sequence[Outcome], different: Sequence[str], runs: Sequence[Run]
) -> str:
    """All of it for programs, with the runs behind: their metrics and costs, no user's data.

    Example:
        >>> made = render_json(load_card("instructrec_games"), "small", [], [], [])
        >>> sorted(json.loads(made))
        ['card', 'deviations', 'format', 'numbers', 'protocol', 'runs', 'size', 'source', 'title']
    """
    content = {
        "format": 1,
        "card": card.name,
        "title": card.title,
        "source": card.source,
        "protocol": card.protocol,
        "size": size,
        "numbers": [
            {name: _plain(getattr(outcome, name)) for name in Outcome.__dataclass_fields__} for outcome in outcomes
        ],
        "deviations": list(different),
        "runs": [_run_summary(run) for run in sorted(runs, key=lambda run: run.cell)],
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _run_summary(run: Run) -> dict[str, Any]:
    return {
        "cell": run.cell,
        "name": run.name,
        "seed": run.seed,
        "settings": list(run.settings),
        "protocol": run.fingerprint,
        "statistics": run.description.get("statistics"),
        "metrics": run.metrics,
        "costs": {key: run.costs[key] for key in _COSTS if key in run.costs},
        "commit": run.environment.get("commit"),
        "dirty": run.environment.get("dirty"),
        "versions": run.environment.get("versions"),
    }


def _plain(value: Any) -> Any:
    """NaN has no place in JSON, and an empty field says the same in CSV."""
    return None if isinstance(value, float) and math.isnan(value) else value
