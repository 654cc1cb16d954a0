"""`instructrec perf data`: preparing interactions, beside the pandas and Python-dict style of P5 and TALLRec.

# N interactions, U users, I items
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.perf.report import MIB, cpu_name, verdict
from benchmarks.report.figure_style import COLORS, GREY
from benchmarks.runs.folder import checkout_state, installed_versions
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of, write_atomic

SIZES = (100_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
COMPARED = 10_000_000
"""The size at which both sides run."""
TARGET, MEMORY_TARGET = 10.0, 4 << 30
CORE, NEGATIVES = 5, 19


def write_interactions(path: Path, rows: int, seed: int = 1) -> Path:
    """Writes `user,item,rating,timestamp` lines shaped as Amazon's ratings-only files are.

    Users have geometric numbers of events (mean 6), items follow a Zipf-like law, stars lean to five, times are whole
    days (so that they tie), and lines come in the order of items, not of time.
    """
    import polars as pl

    chance = np.random.default_rng(seed)
    users, items = max(10, rows // 6), max(50, rows // 60)
    user = chance.geometric(1 / 6, size=2 * users)
    user = np.repeat(np.arange(len(user)), user)[:rows]
    user = chance.permutation(len(user))[user % len(user)]
    item = np.minimum((items * chance.random(rows) ** 2.5).astype(np.int64), items - 1)
    table = pl.DataFrame(
        {
            "user": user,
            "item": item,
            "rating": chance.choice([5.0, 4.0, 3.0, 2.0, 1.0], size=rows, p=[0.6, 0.18, 0.1, 0.05, 0.07]),
            "timestamp": chance.integers(11_000, 16_000, size=rows) * 86_400,
        }
    )
    coded = table.sort("item", maintain_order=True).with_columns(
        pl.format("A{}", pl.col("user").cast(pl.String).str.zfill(13)).alias("user"),
        pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)).alias("item"),
    )
    coded.write_csv(path, include_header=False)
    return path


def ours(path: Path, *, cache: bool = False, compare: bool = True) -> dict[str, Any]:
    """Reads, filters, splits and draws with this project's own stages; returns seconds, peak memory and counts."""
    import polars as pl

    from callbacks.cost_meter import peak_memory
    from datamodules.protocol.apply import frozen_sequences
    from datamodules.protocol.rules import Protocol
    from datamodules.tables.interactions import Interactions

    began = time.perf_counter()
    columns = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    events = pl.read_csv(path, has_header=False, schema=columns)
    items = events.select(pl.col("item").unique(maintain_order=True))
    titled = items.with_columns(pl.format("Product {}", "item").alias("title"))
    data = Interactions(events, titled, sha256_of(path))
    del events, items
    protocol = Protocol(user_core=CORE, item_core=CORE, negatives=NEGATIVES)
    sequences = frozen_sequences(data, protocol, least=1 if cache else 1 << 62)
    seconds = time.perf_counter() - began
    facts: dict[str, Any] = {
        "seconds": seconds,
        "peak_bytes": peak_memory(),
        "users": len(sequences.user_ids),
        "items": len(sequences.item_ids),
        "interactions": len(sequences.item),
    }
    if compare:
        columns_of = (
            sequences.test.user,
            sequences.item[sequences.validation.target],
            sequences.item[sequences.test.target],
        )
        rows = zip(*(column.tolist() for column in columns_of), strict=True)
        facts["targets"] = _sum_of(
            [f"{sequences.user_ids[u]} {sequences.item_ids[v]} {sequences.item_ids[i]}" for u, v, i in rows]
        )
    return facts


def theirs(path: Path) -> dict[str, Any]:
    """The same in the style of P5's and TALLRec's scripts: a pandas table walked by row, dicts, draws one by one.

    Kinder than the originals: rows come from `itertuples` (TALLRec: `iterrows`), filtering is by comprehension (P5:
    `list.remove`), negatives are drawn by rejection (P5: `numpy.random.choice` without replacement, which permutes the
    whole catalogue for every user).
    """
    import pandas as pd

    from callbacks.cost_meter import peak_memory

    began = time.perf_counter()
    table = pd.read_csv(path, header=None, names=["user", "item", "rating", "timestamp"])
    histories: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for row in table.itertuples(index=False):
        histories[row.user].append((row.item, row.timestamp, row.rating))
    for history in histories.values():
        history.sort(key=lambda event: event[1])
    sequences = {user: [item for item, _, _ in history] for user, history in histories.items()}
    sequences = _dict_core(sequences)
    item_ids: dict[str, int] = {}
    for items in sequences.values():
        for item in items:
            item_ids.setdefault(item, len(item_ids))
    coded = {user: [item_ids[item] for item in items] for user, items in sequences.items()}
    chance = random.Random(42)  # noqa: S311  # no secret
    cases = []
    for user, codes in coded.items():
        if len(codes) < 3:
            continue
        seen = set(codes)
        for target in (codes[-2], codes[-1]):
            negatives: list[int] = []
            while len(negatives) < NEGATIVES:
                drawn = chance.randrange(len(item_ids))
                if drawn not in seen and drawn not in negatives:
                    negatives.append(drawn)
            offered = [target, *negatives]
            chance.shuffle(offered)
            cases.append((user, target, offered))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": peak_memory(),
        "users": len(sequences),
        "items": len(item_ids),
        "interactions": sum(map(len, sequences.values())),
        "targets": _sum_of([f"{u} {i[-2]} {i[-1]}" for u, i in sequences.items() if len(i) >= 3]),
    }


def _dict_core(sequences: dict[str, list[str]]) -> dict[str, list[str]]:
    while True:
        counts: dict[str, int] = defaultdict(int)
        for items in sequences.values():
            for item in items:
                counts[item] += 1
        if all(len(items) >= CORE for items in sequences.values()) and all(n >= CORE for n in counts.values()):
            return sequences
        sequences = {
            user: [item for item in items if counts[item] >= CORE]
            for user, items in sequences.items()
            if len(items) >= CORE
        }


def _sum_of(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def alone(work: Callable[..., dict[str, Any]], path: Path, **options: bool) -> dict[str, Any]:
    """Runs one side in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, path, **options).result()


def run_data(sizes: tuple[int, ...], compared: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures our cost at every size, and both sides and a second run at one.

    Raises:
        RuntimeError: the sides do not agree on what they prepared.
    """
    results: dict[str, Any] = {"core": CORE, "negatives": NEGATIVES, "compared": compared, "ours": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = write_interactions(Path(folder) / "ratings.csv", size)
            if size == compared:
                results |= _both(path, Path(folder), say)
            side = results["ours"][str(size)] = results.pop("first", None) or alone(ours, path, compare=False)
            say(f"{size:,} interactions: ours {side['seconds']:.1f} s, {side['peak_bytes'] / 2**20:,.0f} MiB")
    exponent = np.polyfit(
        np.log([float(size) for size in results["ours"]]), np.log([s["seconds"] for s in results["ours"].values()]), 1
    )
    return results | {"exponent": float(exponent[0])}


def _both(path: Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    first = alone(ours, path)
    before = os.environ.get("INSTRUCTREC_CACHE")
    os.environ["INSTRUCTREC_CACHE"] = str(folder / "cache")
    try:
        alone(ours, path, cache=True, compare=False)
        again = alone(ours, path, cache=True)
    finally:
        os.environ.pop("INSTRUCTREC_CACHE")
        if before is not None:
            os.environ["INSTRUCTREC_CACHE"] = before
    peer = alone(theirs, path)
    for name in ("users", "items", "interactions", "targets"):
        if not first[name] == again[name] == peer[name]:
            raise RuntimeError(f"the sides differ in {name}: {first[name]}, again {again[name]}, peer {peer[name]}")
    factor = peer["seconds"] / first["seconds"]
    say(f"ours {first['seconds']:.1f} s, again {again['seconds']:.1f} s, dicts {peer['seconds']:.1f} s: {factor:.1f}x")
    return {"first": first, "again": again, "peer": peer, "speed_up": factor}


def measure_data(out: Path, say: Callable[[str], None], *, quick: bool) -> str:
    """Runs the measurement, writes its files and returns the table."""
    if importlib.util.find_spec("pandas") is None:
        raise InputError("perf data compares with pandas, which is not installed; pip install 'instructrec[perf]'")
    environment = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": installed_versions("polars", "pandas", "numpy"),
        "quick": quick,
        **checkout_state(),
    }
    data = run_data((2_000, 4_000), 4_000, say) if quick else run_data(SIZES, COMPARED, say)
    results = {"format": 1, "environment": environment, "data": data}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(results, indent=1))
    text = markdown(results)
    write_atomic(out.with_suffix(".md"), text)
    draw(data, out.with_suffix(".png"))
    return text


def markdown(results: dict[str, Any]) -> str:
    """The table of a record."""
    data, environment = results["data"], results["environment"]
    ours, peer, again = data["ours"][str(data["compared"])], data["peer"], data["again"]
    rows = [
        f"Preparing synthetic interactions shaped as Amazon's: read a CSV file, {data['core']}-core to its fixpoint, order by"
        f" time, leave-one-out, 1 + {data['negatives']} candidates for every validation and test case, fingerprint;"
        f" {environment['cpu']}, {environment['threads']} threads; {environment['date'][:10]}.",
        "",
        "| interactions | seconds | rows a second | peak memory |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {int(size):,} | {side['seconds']:.2f} | {int(size) / side['seconds']:,.0f} | {side['peak_bytes'] / MIB:,.0f} MiB |"
            for size, side in data["ours"].items()
        ),
        "",
        f"Seconds grow with the {data['exponent']:.2f}th power of the rows (fit over all sizes; 1 is linear).",
        "",
        f"At {data['compared']:,} rows, each side in a process of its own, both with the same"
        f" {ours['users']:,} users, {ours['items']:,} items and held-out events:",
        "",
        "| side | seconds | peak memory |",
        "| --- | ---: | ---: |",
        f"| ours | {ours['seconds']:.1f} | {ours['peak_bytes'] / MIB:,.0f} MiB |",
        f"| ours, a second run (cache verified and mapped) | {again['seconds']:.1f} | {again['peak_bytes'] / MIB:,.0f} MiB |",
        f"| pandas rows and Python dicts, as P5 and TALLRec prepare | {peer['seconds']:.1f} | {peer['peak_bytes'] / MIB:,.0f} MiB |",
        "",
        f"Speed-up **{data['speed_up']:.1f}x** (target {TARGET:g}x, {verdict(data['speed_up'], TARGET, least=True)}); memory"
        f" target below {MEMORY_TARGET / MIB:,.0f} MiB, {verdict(ours['peak_bytes'], MEMORY_TARGET, least=False)}.",
    ]
    return "\n".join(rows) + "\n"


def draw(data: dict[str, Any], path: Path) -> Path:
    """Draws seconds over rows on two logarithmic axes, with the line of linear growth."""
    from matplotlib.figure import Figure

    sizes = [int(size) for size in data["ours"]]
    seconds = [side["seconds"] for side in data["ours"].values()]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(sizes, seconds, marker="o", color=COLORS[0], label="ours")
    anchor = seconds[-1] / sizes[-1]
    axes.loglog(sizes, [anchor * size for size in sizes], color=GREY, linestyle=":", label="linear")
    axes.loglog(
        [data["compared"]],
        [data["peer"]["seconds"]],
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
