"""A run's results as JSON, as a Markdown table and as figures; every number comes from the JSON."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.perf.profiling import GROUPS
from benchmarks.perf.setting import Setting
from benchmarks.report.figure_style import COLORS, GREY
from benchmarks.runs.folder import checkout_state, installed_versions
from benchmarks.runs.resuming import best_precision
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

# Results that grow work by work, within a run and over several.
#
# A work and its peers are always measured in one run; the works of one table may come from several, on the same machine
# with the same versions and settings, and each says from which.

ALONE = ("limit", "loading")
"""Works that compare nothing."""

SAME = ("cpu", "gpu", "bfloat16_units", "threads", "versions", "setting")
"""Of the environment: what the works of one table have in common."""

OF_A_RUN = ("date", "commit", "dirty")
"""Of the environment: what each work keeps of the run that it is from; a commit only inside a checkout."""


def nothing_yet(environment: dict[str, Any]) -> dict[str, Any]:
    """Results without a work."""
    return {"format": 1, "environment": environment, "comparisons": {}}


def read_earlier(path: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """The results of an earlier run, to be added to; nothing yet where there is no file.

    Raises:
        InputError: the file does not hold results, or those of another machine, other versions or settings.
    """
    if not path.exists():
        return nothing_yet(environment)
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        earlier_environment, works = earlier["environment"], [*earlier["comparisons"].values(), *_alone(earlier)]
        other = [name for name in SAME if earlier_environment.get(name) != environment.get(name)]
        for work in works:
            work.setdefault("run", _run(earlier_environment))
        before = float(earlier_environment.get("seconds", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--add: {path} does not hold results of perf: {error!r}") from error
    if other:
        name = other[0]
        difference = _difference(earlier_environment.get(name), environment.get(name))
        raise InputError(f"--add: {path} was measured with another {name}: {difference}; give another --out")
    return earlier | {"environment": environment | {"seconds": before}}


def holds(results: dict[str, Any], name: str) -> bool:
    """Whether a work is there, and did not fail.

    Example:
        >>> holds({"comparisons": {"score_20": {}, "beam": {"error": "no memory"}}}, "beam")
        False
    """
    return "error" not in (results if name in ALONE else results["comparisons"]).get(name, {"error": "not there"})


def add(results: dict[str, Any], name: str, numbers: dict[str, Any]) -> None:
    """Puts a work of this run in its place."""
    work = numbers | {"run": _run(results["environment"])}
    (results if name in ALONE else results["comparisons"])[name] = work


def runs(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that the works are from, the oldest first; none where the file is of an earlier version."""
    works = [*results["comparisons"].values(), *_alone(results)]
    distinct = {tuple(work["run"].items()): work["run"] for work in works if "run" in work}
    return sorted(distinct.values(), key=lambda run: str(run["date"]))


def _run(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: environment[name] for name in OF_A_RUN if name in environment}


def _alone(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results[name] for name in ALONE if name in results]


def _difference(earlier: Any, present: Any) -> str:
    if isinstance(earlier, dict) and isinstance(present, dict):
        name = next(name for name in {**earlier, **present} if earlier.get(name) != present.get(name))
        return f"{name} {earlier.get(name)}, now {present.get(name)}"
    return f"{earlier}, now {present}"


MIB = 1 << 20


def environment(setting: Setting) -> dict[str, Any]:
    """Everything a reader needs to judge a time: machine, versions, commit, date, settings."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if setting.device == "cuda" else None,
        "bfloat16_units": best_precision("gpu" if setting.device == "cuda" else "cpu") == "bf16-mixed",
        "threads": setting.threads,
        "versions": installed_versions("accelerate", "datasets", "trl"),
        "setting": asdict(setting),
        **checkout_state(),
    }


def cpu_name() -> str:
    """The processor's model name, as the operating system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_results(out: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the JSON, and beside it, with the same stem, the table and the figures; returns the files written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(results, indent=1))
    table = out.with_suffix(".md")
    write_atomic(table, markdown(results))
    drawn = [draw_speed(results, out.with_suffix(".png")), draw_profile(results, profile_path(out))]
    return [out, table, *(path for path in drawn if path is not None)]


def profile_path(out: Path) -> Path:
    """Where the figure of operators goes."""
    return out.with_name(f"{out.stem}_profile.png")


def markdown(results: dict[str, Any]) -> str:
    """The tables, as they stand beside the JSON and in the README."""
    parts = [*_heading(results), *_comparisons(results), *_limits(results), *_loading(results), *_failures(results)]
    return "\n".join(parts) + "\n"


def verdict(value: float, target: float, *, least: bool) -> str:
    """Whether a value keeps its target, in words.

    Example:
        >>> verdict(9.3, 8, least=True), verdict(2.6, 2.5, least=False)
        ('reached', 'missed')
    """
    return "reached" if (value >= target if least else value <= target) else "missed"


def _heading(results: dict[str, Any]) -> Iterator[str]:
    environment = results["environment"]
    setting, versions = environment["setting"], environment["versions"]
    where = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "trl") if name in versions
    )
    share = setting.get("share", 1.0)
    yield (
        f"{Path(setting['backbone']).name} in {_precision(results)} on MovieLens-100K, histories of up to {setting['history']} events;"
        f" {where}; {named}; {environment['date'][:10]}."
    )
    yield (
        f"Sides take turns in one run, each in its own process, {setting['repetitions']} timed turns after a warm-up;"
        " medians, in brackets the least and largest quotient of neighbouring turns."
        + (f" A turn has {share:g} of the usual users and windows (`--share`)." if share != 1 else "")
    )
    if _precision(results) == "float32":
        yield (
            "Float32, as the processor has no bfloat16 units."
            if environment.get("bfloat16_units") is False
            else "Float32, as asked for with `--precision`."
        )
    if len(parts := runs(results)) > 1:
        at = ", ".join(dict.fromkeys(f"{run.get('commit', 'no commit')[:9]} of {run['date'][:10]}" for run in parts))
        yield f"Each work stands beside its peers in one run; the works are from {len(parts)} runs, at {at}."
    if setting["quick"]:
        yield "**A quick run on the smallest sizes: its times mean nothing.**"
    yield ""


def _precision(results: dict[str, Any]) -> str:
    """Of all turns; results of earlier versions, which knew one only, do not name it."""
    return str(results["environment"]["setting"].get("precision", "bfloat16"))


def _comparisons(results: dict[str, Any]) -> Iterator[str]:
    rows = {name: row for name, row in results["comparisons"].items() if "error" not in row}
    if not rows:
        return
    both = ", ".join(dict.fromkeys((_precision(results), "float32")))
    yield f"| work | ours | peer | speed-up | target | peak memory, ours / peer | difference in {both} |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows.values():
        sides, unit = row["sides"], row["unit"]
        ours = sides[row["ours"]]
        for peer, factor in row["speed_up"].items():
            yield " | ".join(
                (
                    f"| {row['title']}",
                    f"{ours['per_second']:.3g} {unit}/s",
                    f"{peer} {sides[peer]['per_second']:.3g} {unit}/s",
                    f"**{factor['median']:.1f}x** [{factor['min']:.1f}, {factor['max']:.1f}]",
                    f"{factor['target']:g}x {verdict(factor['median'], factor['target'], least=True)}",
                    f"{_memory(ours)} / {_memory(sides[peer])}",
                    f"{_differences(row, peer)} |",
                )
            )
    yield ""


def _memory(side: dict[str, Any]) -> str:
    memory = side["memory"]
    return f"{memory['peak_bytes'] / MIB:.0f} MiB" if memory else "–"


def _differences(row: dict[str, Any], peer: str) -> str:
    differences: dict[str, list[str]] = {}
    for agreement in row["agreement"]:
        if agreement["peer"] == peer:
            differences.setdefault(agreement["what"], []).append(f"{agreement['difference']:.1g}")
    return "; ".join(f"{what} {', '.join(both)}" for what, both in differences.items())


def _limits(results: dict[str, Any]) -> Iterator[str]:
    limit = results.get("limit")
    if not limit or "error" in limit:
        return
    # Records of earlier versions, whose engine computed the last feed-forward of every token, count it so.
    where = " (head and last feed-forward: where a label is predicted)" if limit.get("last_where_read") else ""
    yield (
        f"Distance to the machine's limit: unique tokens x FLOPs a token{where} over"
        f" {limit['rate']['flops_per_second'] / 1e9:.0f} GFLOP/s, the best measured {_precision(results)} rate of this"
        " model's own matrix shapes."
    )
    yield ""
    yield "| our step | time / limit | target | matmul | everything else |"
    yield "| --- | --- | --- | --- | --- |"
    for step in limit["steps"].values():
        total = sum(step["groups"].values())
        shares = {name: seconds / total for name, seconds in step["groups"].items()}
        rest = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != "matmul" and share >= 0.01)
        target = step["target"]
        wanted = f"{target:g} {verdict(step['ratio'], target, least=False)}" if target else "–"
        yield f"| {step['title']} | **{step['ratio']:.2f}** | {wanted} | {shares['matmul']:.0%} | {rest} |"
    yield ""


def _loading(results: dict[str, Any]) -> Iterator[str]:
    loading = results.get("loading")
    if not loading or "error" in loading:
        return
    yield (
        f"Loading: {loading['wait_fraction']:.2%} of a training step waits for data (target below {loading['target']:.0%},"
        f" {verdict(loading['wait_fraction'], loading['target'], least=False)}, {loading['workers']} worker processes);"
        f" one core samples, renders and tokenises {loading['instructions_per_second_per_core']:,.0f} instructions"
        f" ({loading['tokens_per_second_per_core']:,.0f} tokens) a second."
    )
    yield ""


def failures(results: dict[str, Any]) -> dict[str, str]:
    """What failed, by name."""
    parts = results["comparisons"] | {name: results[name] for name in ("limit", "loading") if name in results}
    return {name: part["error"] for name, part in parts.items() if "error" in part}


def _failures(results: dict[str, Any]) -> Iterator[str]:
    for name, error in failures(results).items():
        yield f"- `{name}` failed: {error.splitlines()[0]}"


def draw_speed(results: dict[str, Any], path: Path) -> Path | None:
    """Draws each speed-up as a bar with the range of its turns, and its target as a line; None where there is none."""
    bars = [
        (f"{row['title']}\nagainst {peer}", factor)
        for row in results["comparisons"].values()
        if "error" not in row
        for peer, factor in row["speed_up"].items()
    ]
    if not bars:
        path.unlink(missing_ok=True)
        return None
    figure = Figure(figsize=(9.5, 0.62 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (_, factor) in enumerate(bars):
        middle = factor["median"]
        spread = [[max(0.0, middle - factor["min"])], [max(0.0, factor["max"] - middle)]]
        color = COLORS[0] if middle >= factor["target"] else COLORS[1]
        axes.barh(row, middle, xerr=spread, color=color, height=0.62, error_kw={"ecolor": GREY, "capsize": 3})
        axes.plot([factor["target"]] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.6)
        axes.annotate(
            f"{middle:.1f}x",
            (max(middle, factor["max"]), row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlim(left=min(0.9, *(0.9 * factor["min"] for _, factor in bars)))
    ticks = [t for t in (1, 2, 4, 8, 16, 32, 64) if t <= 2 * max(factor["max"] for _, factor in bars)]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("work a second, ours to the peer's (black line: the target; orange: missed)")
    _tidy(axes)
    figure.savefig(path, dpi=150)
    return path


def draw_profile(results: dict[str, Any], path: Path) -> Path | None:
    """Draws each step's time as a multiple of the matrix work it cannot do without, split by kind of operator."""
    limit = results.get("limit")
    if not limit or "error" in limit:
        path.unlink(missing_ok=True)
        return None
    steps = list(limit["steps"].values())
    figure = Figure(figsize=(9.5, 0.7 * len(steps) + 1.7), layout="constrained")
    axes = figure.subplots()
    colors = (*COLORS, "#BBBBBB")
    for row, step in enumerate(steps):
        total, left = sum(step["groups"].values()), 0.0
        for group, color in zip(GROUPS, colors, strict=True):
            width = step["groups"][group] / total * step["ratio"]
            axes.barh(row, width, left=left, color=color, height=0.62, label=group if row == 0 else None)
            left += width
        axes.annotate(f"{step['ratio']:.2f}", (left, row), xytext=(6, 0), textcoords="offset points", va="center")
    axes.axvline(1.0, color="black", linewidth=1.4)
    axes.set_yticks(range(len(steps)), [step["title"] for step in steps])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("time, in multiples of the matrix work alone (1 = the machine's limit)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=150)
    return path


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
