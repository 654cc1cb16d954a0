"""The record of `instructrec perf data`: JSON, table and figure; every number comes from the JSON."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figure_parts import COLORS, GREY
from benchmarks.ledger import write_atomic
from benchmarks.perf.data import COMPARED, MEMORY_TARGET, SIZES, TARGET, run_data
from benchmarks.perf.report import MIB, cpu_name, verdict
from benchmarks.run_folder import checkout_state, installed_versions
from datamodules.sources import InputError


def measure_data(out: Path, say: Callable[[str], None], *, quick: bool) -> str:
    """Runs the measurement and writes its files.

    Args:
        out: the JSON file; table and figure go beside it.
        say: progress.
        quick: smallest sizes, to see that everything runs.

    Returns:
        The table.

    Raises:
        InputError: pandas is missing.
    """
    if importlib.util.find_spec("pandas") is None:
        raise InputError("perf data compares with pandas, which is not installed; pip install 'instructrec[perf]'")
    made = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": installed_versions("polars", "pandas", "numpy"),
        "quick": quick,
        **checkout_state(),
    }
    found = run_data((2_000, 4_000), 4_000, say) if quick else run_data(SIZES, COMPARED, say)
    results = {"format": 1, "environment": made, "data": found}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(results, indent=1))
    text = markdown(results)
    write_atomic(out.with_suffix(".md"), text)
    draw(found, out.with_suffix(".png"))
    return text


def markdown(results: dict[str, Any]) -> str:
    """The table of a record."""
    found, made = results["data"], results["environment"]
    ours, peer, again = found["ours"][str(found["compared"])], found["peer"], found["again"]
    rows = [
        f"Preparing synthetic interactions shaped as Amazon's: read a CSV file, {found['core']}-core to its fixpoint, order by"
        f" time, leave-one-out, 1 + {found['negatives']} candidates for every validation and test case, fingerprint;"
        f" {made['cpu']}, {made['threads']} threads; {made['date'][:10]}.",
        "",
        "| interactions | seconds | rows a second | peak memory |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {int(size):,} | {side['seconds']:.2f} | {int(size) / side['seconds']:,.0f} | {side['peak_bytes'] / MIB:,.0f} MiB |"
            for size, side in found["ours"].items()
        ),
        "",
        f"Seconds grow with the {found['exponent']:.2f}th power of the rows (fit over all sizes; 1 is linear).",
        "",
        f"At {found['compared']:,} rows, each side in a process of its own, both with the same"
        f" {ours['users']:,} users, {ours['items']:,} items and held-out events:",
        "",
        "| side | seconds | peak memory |",
        "| --- | ---: | ---: |",
        f"| ours | {ours['seconds']:.1f} | {ours['peak_bytes'] / MIB:,.0f} MiB |",
        f"| ours, a second run (cache verified and mapped) | {again['seconds']:.1f} | {again['peak_bytes'] / MIB:,.0f} MiB |",
        f"| pandas rows and Python dicts, as P5 and TALLRec prepare | {peer['seconds']:.1f} | {peer['peak_bytes'] / MIB:,.0f} MiB |",
        "",
        f"Speed-up **{found['speed_up']:.1f}x** (target {TARGET:g}x, {verdict(found['speed_up'], TARGET, least=True)}); memory"
        f" target below {MEMORY_TARGET / MIB:,.0f} MiB, {verdict(ours['peak_bytes'], MEMORY_TARGET, least=False)}.",
    ]
    return "\n".join(rows) + "\n"


def draw(found: dict[str, Any], path: Path) -> Path:
    """Draws seconds over rows on two logarithmic axes, with the line of linear growth.

    Args:
        found: what `run_data` gives.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure

    sizes = [int(size) for size in found["ours"]]
    seconds = [side["seconds"] for side in found["ours"].values()]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(sizes, seconds, marker="o", color=COLORS[0], label="ours")
    anchor = seconds[-1] / sizes[-1]
    axes.loglog(sizes, [anchor * size for size in sizes], color=GREY, linestyle=":", label="linear")
    axes.loglog(
        [found["compared"]],
        [found["peer"]["seconds"]],
        marker="s",
        color=COLORS[1],
        label="pandas rows and dicts",
        linestyle="",
    )
    axes.set_xlabel("interactions")
    axes.set_ylabel("seconds to prepare")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path
