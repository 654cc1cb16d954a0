"""A run's results as JSON, as a Markdown table and as figures; every number comes from the JSON."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.config_values import best_precision
from benchmarks.ledger import write_atomic
from benchmarks.perf.earlier import runs
from benchmarks.perf.setting import Setting
from benchmarks.run_folder import checkout_state, installed_versions

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
    """Writes the JSON, and beside it the table and the figures.

    Args:
        out: the JSON file; the others share its stem.
        results: of the whole run.

    Returns:
        The files written.
    """
    from benchmarks.perf.figures import draw_profile, draw_speed

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

    >>> verdict(9.3, 8, least=True), verdict(2.6, 2.5, least=False)
    ('reached', 'missed')
    """
    return "reached" if (value >= target if least else value <= target) else "missed"


def _heading(results: dict[str, Any]) -> Iterator[str]:
    made = results["environment"]
    setting, versions = made["setting"], made["versions"]
    where = made["gpu"] or f"{made['cpu']}, {made['threads']} threads"
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "trl") if name in versions
    )
    share = setting.get("share", 1.0)
    yield (
        f"{Path(setting['backbone']).name} in {_precision(results)} on MovieLens-100K, histories of up to {setting['history']} events;"
        f" {where}; {named}; {made['date'][:10]}."
    )
    yield (
        f"Sides take turns in one run, each in its own process, {setting['repetitions']} timed turns after a warm-up;"
        " medians, in brackets the least and largest quotient of neighbouring turns."
        + (f" A turn has {share:g} of the usual users and windows (`--share`)." if share != 1 else "")
    )
    if _precision(results) == "float32":
        yield (
            "Float32, as the processor has no bfloat16 units."
            if made.get("bfloat16_units") is False
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
    found: dict[str, list[str]] = {}
    for agreement in row["agreement"]:
        if agreement["peer"] == peer:
            found.setdefault(agreement["what"], []).append(f"{agreement['difference']:.1g}")
    return "; ".join(f"{what} {', '.join(both)}" for what, both in found.items())


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
