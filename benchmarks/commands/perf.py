"""`instructrec perf`: our engine beside its real peers, in one run."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.commands import LineParser
from benchmarks.paths import PACKAGE
from benchmarks.perf import scoring, training
from benchmarks.perf.compare import Say, run_comparison
from benchmarks.perf.limit import run_limit, run_loading
from benchmarks.perf.measure import Comparison
from benchmarks.perf.peers import require_trl
from benchmarks.perf.setting import Setting
from datamodules.contract.errors import InputError
from datamodules.contract.files import write_atomic

if TYPE_CHECKING:
    from benchmarks.perf.setting import Precision


NAMES = {
    "score_20": "scoring 1 + 19 candidates against padded batches of prompt and candidate",
    "score_100": "scoring 1 + 99 candidates, likewise",
    "train_8": "training with 8 branches a history (titles, yes/no, growing histories) against Trainer and SFTTrainer",
    "train_1": "training with a single target, nothing shared, against both",
    "catalogue": "ranking the whole catalogue against padded batches",
    "beam": "constrained beam search against generate(prefix_allowed_tokens_fn=...)",
    "limit": "our steps against the machine's matrix rate in the same precision, and a profile of the rest",
    "loading": "the share of a step that waits for data; instructions a second and core",
    "data": "preparing 10 million interactions against pandas rows and Python dicts; only when named, and alone",
}

MARKERS = {"bfloat16": "perf", "float32": "perf-float32"}

EPILOG = (
    "NAME is any of:\n"
    + "\n".join(f"  {name:10} {told}" for name, told in NAMES.items())
    + """

Every side runs in a process of its own (so its peak memory is its own) on the same prompts of MovieLens-100K, with the
same weights in the same precision on as many threads; sides take turns (A B A B). Precision is bfloat16 where the
hardware has units for it and float32 elsewhere, unless --precision says which. Each peer first tries a few settings and
uses its fastest. What the sides computed (log-likelihoods, losses, gradients) must agree within a stated tolerance, in
that precision and in float32; where it does not, the row fails and the command exits with 1.

Writes FILE (JSON: environment, every side's settings, every turn's seconds), and beside it the same name with .md (the
tables), .png (speed-ups) and _profile.png (where our step's time goes). FILE is written after every work; with --add a
later run goes on with it, on the same machine, versions and settings only. The default run takes about 40 minutes on two cores
with bfloat16 units, 53 in float32 without them (two repetitions); on a busy machine the times mean little. Slow machines
take --share 0.25: a quarter of the users and windows in a turn, which the table says. --device cuda runs the same table on a GPU; this path has not been
measured by us."""
)


def run_command(arguments: Sequence[str]) -> int:
    """Runs `perf`; returns 1 where a comparison failed."""
    options = _parser().parse_args(arguments)
    names = _checked(options)
    if names == ["data"]:
        return _measure_data(options)
    # Threads are an environment's matter for every library that starts its own.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return _measure(names, options)


def _parser() -> argparse.ArgumentParser:
    parser = LineParser(
        prog="instructrec perf",
        description="Measures our engine beside its real peers, in one run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; default: everything")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file of the results")
    parser.add_argument(
        "--add", action="store_true", help="keep what FILE holds, measure the works that it lacks, or those named"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="?",
        const=PACKAGE / "perf/README.md",
        help="put the tables between this file's markers: perf, in float32 perf-float32 (default: benchmarks/perf/README.md)",
    )
    parser.add_argument("--backbone", default="smollm2-135m-instruct", help="packaged name, folder or hub id")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all sides run")
    parser.add_argument(
        "--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of all sides; default: see below"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side; default: all")
    parser.add_argument("--repetitions", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual users and windows in a turn")
    parser.add_argument("--history", type=int, default=20, help="most events in a prompt")
    parser.add_argument("--seed", type=int, default=1, help="of the users and windows that are drawn")
    parser.add_argument(
        "--quick", action="store_true", help="tiny random model and smallest sizes, to see that everything runs"
    )
    parser.add_argument("--one-process", action="store_true", help="all sides in this process; memory is not measured")
    return parser


def _checked(options: Any) -> list[str]:
    import difflib

    for name in options.names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
            raise InputError(f"perf measures no {name!r}; the nearest is {near!r}")
    for name, least in (("threads", 1), ("repetitions", 1), ("history", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}, must be at least {least}")
    if not 0 < options.share <= 1:
        raise InputError(f"--share is {options.share:g}, must be above 0 and at most 1")
    if options.out.suffix != ".json":
        raise InputError(f"--out {options.out} must be a .json file; the table and figures go beside it")
    if options.readme is not None and not options.readme.is_file():
        raise InputError(f"--readme {options.readme} does not exist")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU here")
    if "data" in options.names:
        if len(set(options.names)) > 1:
            raise InputError("perf data measures processors and memory alone; run it without other names")
        return ["data"]
    return [name for name in NAMES if name != "data" and (not options.names or name in options.names)]


def _measure_data(options: Any) -> int:
    from benchmarks.perf.data import measure_data

    began = time.monotonic()
    text = measure_data(
        options.out, lambda line: print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True), quick=options.quick
    )
    print(f"{text}results: {options.out}, and .md and .png beside it")
    return 0


def _measure(names: Sequence[str], options: Any) -> int:
    from benchmarks.perf.report import (
        environment,
        failures,
        markdown,
        nothing_yet,
        profile_path,
        read_earlier,
        write_results,
    )
    from benchmarks.perf.setting import Setting, shrink_backbone
    from benchmarks.report.write import replace_between_markers
    from datamodules.sources.pretrained import check_backbone_name

    check_backbone_name(options.backbone)
    if any(name.startswith("train") for name in names):
        require_trl()
    named = Setting(
        backbone=options.backbone,
        device=options.device,
        precision=_precision(options),
        threads=options.threads,
        repetitions=options.repetitions,
        history=options.history,
        seed=options.seed,
        quick=options.quick,
        share=options.share,
    )
    made = environment(named)
    results = read_earlier(options.out, made) if options.add else nothing_yet(made)
    with tempfile.TemporaryDirectory() as folder:
        setting = replace(named, backbone=shrink_backbone(named.backbone, Path(folder))) if named.quick else named
        _measure_into(results, names, setting, options)
    files = write_results(options.out, results)
    text = markdown(results)
    print(text)
    if options.readme:
        replace_between_markers(
            options.readme, MARKERS[named.precision], text + _pictures(options.out, options.readme, profile_path)
        )
    print("results: " + ", ".join(map(str, files)))
    return 1 if failures(results) else 0


def _precision(options: Any) -> Precision:
    from benchmarks.runs.resuming import best_precision

    if options.precision != "auto":
        return cast("Precision", options.precision)
    return "bfloat16" if best_precision("gpu" if options.device == "cuda" else "cpu") == "bf16-mixed" else "float32"


def _measure_into(results: dict[str, Any], names: Sequence[str], setting: Setting, options: Any) -> None:
    """Measures one work after the other; what is done is on the disk before the next begins."""
    from benchmarks.perf.report import add, holds

    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    before = results["environment"].get("seconds", 0.0)
    for name, measure in measures(names, setting, say, one_process=options.one_process):
        if options.names or not holds(results, name):
            add(results, name, _measured(measure, name, say))
            results["environment"]["seconds"] = round(before + time.monotonic() - began, 1)
            write_atomic(options.out, json.dumps(results, indent=1))
    every = measures([name for name in NAMES if name != "data"], setting, say, one_process=True)
    comparisons = results["comparisons"]
    results["comparisons"] = {name: comparisons[name] for name, _ in every if name in comparisons}


def _measured(measure: Callable[[], dict[str, Any]], name: str, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return measure()
    except InputError:
        raise
    except Exception as error:  # one row that fails must not cost the others
        say(f"{name}: failed: {error}")
        return {"error": str(error) or type(error).__name__}


def _pictures(out: Path, page: Path, profile_path: Callable[[Path], Path]) -> str:
    drawn = [path for path in (out.with_suffix(".png"), profile_path(out)) if path.exists()]
    titles = {out.with_suffix(".png"): "Speed-up over each peer", profile_path(out): "Where a step's time goes"}
    return "\n".join(
        f"![{titles[path]}]({Path(os.path.relpath(path, page.absolute().parent)).as_posix()})\n" for path in drawn
    )


def comparisons(name: str, setting: Setting) -> list[Comparison]:
    """The comparisons of a name; a quick run ranks fewer candidates, because its data are small."""
    from benchmarks.perf import catalogue

    made: dict[str, Callable[[], list[Comparison]]] = {
        "score_20": lambda: [scoring.comparison("score_20", 20, target=8)],
        "score_100": lambda: [scoring.comparison("score_100", 25 if setting.quick else 100, target=15)],
        "train_8": lambda: [
            training.comparison("train_8_titles", "titles", "training, 8 titles after one history", 6, 6),
            training.comparison(
                "train_8_pointwise", "pointwise", "training, 8 yes/no questions after one history", 6, 6
            ),
            training.comparison("train_8_windows", "windows", "training, 8 successive targets, growing history", 6, 6),
        ],
        "train_1": lambda: [training.comparison("train_1", "single", "training, single target", 2, 1.8)],
        "catalogue": lambda: [catalogue.full_ranking()],
        "beam": lambda: [catalogue.beams()],
    }
    return made[name]()


def measures(
    names: Sequence[str], setting: Setting, say: Say, *, one_process: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is to be measured, each by its name, when called."""
    for name in names:
        if name == "limit":
            yield name, partial(run_limit, setting, say)
        elif name == "loading":
            yield name, partial(run_loading, setting, say)
        else:
            for each in comparisons(name, setting):
                yield each.name, partial(run_comparison, each, setting, say, one_process=one_process)
