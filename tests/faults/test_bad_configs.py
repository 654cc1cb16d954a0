"""Two hundred bad configs: each one line, exit code 2, the nearest valid key, before a model or data file is opened."""

from __future__ import annotations

import copy
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.__main__ import main
from tests.faults import tally

COUNT, SHORT = 200, 25
SECONDS = 3.0
"""Processor time of a refusal in a running process; starting Python and importing torch and Lightning come on top."""

Config = dict[str, Any]
BASE: Config = {
    "seed_everything": 3,
    "name": "lora",
    "model": {
        "class_path": "LoRATuning",
        "init_args": {
            "backbone": "smollm2-135m-instruct",
            "objective": "likelihood",
            "r": 8,
            "alpha": 16,
            "lora_dropout": 0.05,
            "schedule": "linear",
            "warmup": 0.1,
            "gradient_clip": 1.0,
            "cutoffs": [1, 5],
            "length_normalised": True,
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.01}},
        },
    },
    "data": {
        "class_path": "MovieLens100K",
        "init_args": {
            "task": "matching",
            "language": "en",
            "batch_size": 4,
            "eval_batch_size": 8,
            "row_tokens": 256,
            "num_workers": 0,
            "targets_per_window": 5,
            "train_negatives": 3,
            "protocol": {"history": 10, "negatives": 19, "test_users": 200, "seed": 7},
        },
    },
    "trainer": {
        "max_steps": 40,
        "precision": "32-true",
        "accelerator": "cpu",
        "val_check_interval": 20,
        "gradient_clip_val": 1.0,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "deterministic": True,
        "logger": False,
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/quality", "patience": 3}}],
    },
}


@dataclass(frozen=True)
class Bad:
    """One bad config.

    Attributes:
        kind: what is wrong with it.
        config: its content: a mapping, or the bytes of the file.
        expected: words of which one must stand in the message; empty: any message.
        options: further words of the command line.
        nearest: the valid key that should be offered; None where there is none.
    """

    kind: str
    config: Config | bytes
    expected: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    nearest: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.expected} {' '.join(self.options)}"[:80]


def places(node: Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(path: tuple[str, ...], value: Any, rename: str | None = None) -> Config:
    """The base config with one value replaced, or one key renamed; other keys keep their order."""
    config = copy.deepcopy(BASE)
    node = config
    for key in path[:-1]:
        node = node[key]
    items = list(node.items())
    node.clear()
    for key, old in items:
        if key != path[-1]:
            node[key] = old
        elif rename is None:
            node[key] = value
        else:
            node[rename] = old
    if path[-1] not in dict(items):
        node[path[-1]] = value
    return config


def dotted(path: tuple[str, ...]) -> str:
    return ".".join(part for part in path if part != "init_args")


def misspelt(word: str, rng: random.Random) -> str:
    while True:
        place, letter = rng.randrange(len(word)), rng.choice("aeionrstl_")
        made = rng.choice(
            [
                word[:place] + word[place + 1 :],
                word[:place] + word[place] + word[place:],
                word[:place] + letter + word[place + 1 :],
                word[:place] + word[place + 1 : place + 2] + word[place : place + 1] + word[place + 2 :],
                f"{word}s",
                word.replace("_", "-"),
            ]
        )
        if made not in (word, "") and made.isascii() and made[0].isalpha():
            return made


def typos(rng: random.Random) -> Iterator[Bad]:
    """Each key of every level twice, in the file and as an option."""
    for path in [path for path in places(BASE) if path[-1] not in ("init_args",)]:
        wrong = misspelt(path[-1], rng)
        nearest = path[-1]
        yield Bad("typo in a file", changed(path, None, rename=wrong), (wrong,), nearest=nearest)
        if path[-1] not in ("class_path", "model", "data", "trainer"):
            wrong = misspelt(path[-1], rng)
            option = dotted((*path[:-1], wrong))
            yield Bad("typo in an option", BASE, (wrong,), (f"--{option}=1",), nearest=nearest)


WRONG_TYPES: list[tuple[str, Any]] = [
    ("seed_everything", "one"),
    ("seed_everything", [1, 2]),
    ("model.init_args.r", "eight"),
    ("model.init_args.r", 8.5),
    ("model.init_args.r", [8]),
    ("model.init_args.alpha", None),
    ("model.init_args.alpha", {"a": 1}),
    ("model.init_args.warmup", "soon"),
    ("model.init_args.gradient_clip", "yes"),
    ("model.init_args.cutoffs", "many"),
    ("model.init_args.cutoffs", [1, "x"]),
    ("model.init_args.optimizer.init_args.lr", "fast"),
    ("model.init_args.optimizer.init_args.lr", [0.1]),
    ("data.init_args.batch_size", "big"),
    ("data.init_args.batch_size", 2.5),
    ("data.init_args.num_workers", "two"),
    ("data.init_args.train_negatives", "some"),
    ("data.init_args.protocol.history", "long"),
    ("trainer.max_steps", "forever"),
    ("trainer.max_steps", {"n": 1}),
    ("trainer.enable_progress_bar", "perhaps"),
    ("trainer.accumulate_grad_batches", "often"),
    ("trainer.callbacks", "EarlyStoping"),
    ("trainer.callbacks", 3),
]

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("seed_everything", -1, "seed"),
    ("model.init_args.r", 0, "at least 1"),
    ("model.init_args.r", -4, "at least 1"),
    ("model.init_args.objective", "likelyhood", "'likelihood'"),
    ("model.init_args.schedule", "linar", "'linear'"),
    ("model.init_args.schedule", "", "schedule"),
    ("model.init_args.warmup", 1.0, "warmup"),
    ("model.init_args.warmup", -0.5, "warmup"),
    ("model.init_args.cutoffs", [], "cut"),
    ("model.init_args.cutoffs", [0], "from 1"),
    ("data.init_args.protocol.ties", "file", "file_order"),
    ("model.init_args.backbone", "smolm2-135m", "'smollm2-135m-instruct'"),
    ("model.init_args.backbone", "", "backbone"),
    ("model.init_args.optimizer.init_args.lr", -1.0, "learning rate"),
    ("model.init_args.optimizer.init_args.weight_decay", -1.0, "weight_decay"),
    ("data.init_args.task", "rerank", "'reranking'"),
    ("data.init_args.language", "fr", "fr"),
    ("data.init_args.template", "matching.en.99", "matching.en."),
    ("data.init_args.template", "matching.zh.1", "does not fit"),
    ("data.init_args.batch_size", 0, "at least 1"),
    ("data.init_args.eval_batch_size", -2, "at least 1"),
    ("data.init_args.row_tokens", 0, "at least 1"),
    ("data.init_args.num_workers", -1, "num_workers"),
    ("data.init_args.targets_per_window", 0, "targets_per_window"),
    ("data.init_args.targets_per_window", 11, "targets_per_window"),
    ("data.init_args.train_negatives", -1, "train_negatives"),
    ("data.init_args.protocol.history", 0, "at least 1"),
    ("data.init_args.protocol.negatives", -3, "negatives"),
    ("data.init_args.protocol.test_users", 0, "at least 1"),
    ("data.init_args.protocol.seed", -1, "seed"),
    ("trainer.max_steps", -7, "max_steps"),
    ("trainer.accelerator", "gpuu", "accelerator"),
    ("trainer.precision", "17-true", "precision"),
    ("trainer.val_check_interval", -2, "val_check_interval"),
    ("trainer.accumulate_grad_batches", 0, "accumulate"),
    ("trainer.devices", 0, "devices"),
    ("trainer.profiler", "quick", "profiler"),
    ("trainer.strategy", "dpp", "strategy"),
]

UNKNOWN_CLASSES: list[tuple[str, Any, str | None]] = [
    ("model.class_path", "LoRATunning", "LoRATuning"),
    ("model.class_path", "lora", "LoRATuning"),
    ("model.class_path", "AdapterTunin", "AdapterTuning"),
    ("model.class_path", "Populrity", "Popularity"),
    ("model.class_path", "recmodels.methods.lora.LoRATunning", "LoRATuning"),
    ("model.class_path", "recmodels.loraa.LoRATuning", "LoRATuning"),
    ("model.class_path", "MovieLens100K", None),
    ("model.class_path", "Recommender", None),
    ("data.class_path", "MovieLens", "MovieLens100K"),
    ("data.class_path", "MovieLens100k", "MovieLens100K"),
    ("data.class_path", "LoRATuning", None),
    ("data.class_path", "datamodules.datasets.movielens.MovieLens10K", "MovieLens100K"),
    ("model.init_args.optimizer.class_path", "AdamWW", "AdamW"),
    ("model.init_args.optimizer.class_path", "torch.optim.Addam", "Adam"),
    ("model.init_args.optimizer.class_path", "EarlyStopping", None),
    ("trainer.callbacks", [{"class_path": "EarlyStoping"}], "EarlyStopping"),
    ("trainer.callbacks", [{"class_path": "CostMetre"}], "CostMeter"),
    ("trainer.logger", [{"class_path": "CSVLoger"}], "CSVLogger"),
]

NESTING: list[Config] = [
    changed(("data", "init_args", "protocol"), 7),
    changed(("data", "init_args", "protocol"), [1]),
    {**BASE, "model": [BASE["model"]]},
    {**BASE, "model": 3},
    {**BASE, "data": ["MovieLens100K"]},
    {**BASE, "trainer": [1, 2]},
    {**BASE, "trainer": "fast"},
    {**BASE, "protocol": {"history": 3}},
    {**BASE, "optimizer": {"class_path": "AdamW"}},
    {**BASE, "init_args": {"r": 3}},
    {**BASE, "model": {"model": BASE["model"]}},
    {**BASE, "model": {"class_path": {"class_path": "LoRATuning"}}},
    {**BASE, "model": {"class_path": "LoRATuning", "init_args": [1]}},
    {**BASE, "trainer": {"trainer": {"max_steps": 1}}},
    {**BASE, "lora": BASE["model"]},
]

LINKED = ("backbone", "objective", "batch_format", "seed")


def files() -> Iterator[Bad]:
    yield Bad("missing file", BASE, ("nowhere.yaml", "does not exist"), ("-c", "nowhere.yaml"))
    yield Bad("missing file", BASE, ("lost.yaml",), ("--config", "no/such/folder/lost.yaml"))
    yield Bad("missing file", BASE, ("lost.ckpt",), ("--ckpt_path", "lost.ckpt"))
    yield Bad("missing file", BASE, ("not a folder",), ("--data.data_dir", "no/such/folder"))
    yield Bad("missing file", BASE, ("writable",), ("--out", "/proc/nowhere"))
    yield Bad("a folder", BASE, ("cannot be read",), ("-c", "."))
    yield Bad("empty", b"", ("empty",))
    yield Bad("only a comment", b"# nothing\n", ("empty",))
    yield Bad("a list", b"- model\n- data\n", ("mapping",))
    yield Bad("a word", b"LoRATuning\n", ("mapping",))
    yield Bad("binary", bytes(range(256)) * 8, ("UTF-8",))
    yield Bad("null bytes", b"model:\0 LoRATuning\n", (":1:", "plain YAML"))
    yield Bad("UTF-16", yaml.safe_dump(BASE).encode("utf-16"), ("UTF-8",))
    yield Bad("huge", b"# " + b"x" * (3 << 20) + b"\nmodel: LoRATuning\n", ("bytes",))
    yield Bad("deep", b"model: " + b"[" * 20_000 + b"]" * 20_000, ("levels",))
    yield Bad("repeated key", b"model: LoRATuning\nmodel: FullTuning\n", (":2:", "twice"))
    yield Bad("tab", b"model:\n\tclass_path: LoRATuning\n", (":2:",))
    yield Bad("unclosed", b"model: {class_path: LoRATuning\n", ("YAML",))
    yield Bad("a tag", b"model: !!python/name:os.system\n", ("tag",))
    laughs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    yield Bad("a billion laughs", "\n".join(["a0: &a0 [x]", *laughs]).encode(), ("values",))
    yield Bad("an alias of itself", b"model: &m [*m]\n", ("defined",))


def cases() -> list[Bad]:
    """All of them, the same on every machine."""
    made = list(typos(random.Random(0)))
    for path, value in WRONG_TYPES:
        made.append(Bad("wrong type", changed(tuple(path.split(".")), value), (path.split(".")[-1], "EarlyStopping")))
    for path, value, word in BAD_VALUES:
        made.append(Bad("bad value", changed(tuple(path.split(".")), value), (word,)))
    for path, value, nearest in UNKNOWN_CLASSES:
        made.append(Bad("unknown class", changed(tuple(path.split(".")), value), nearest=nearest))
    made += [Bad("wrong nesting", config) for config in NESTING]
    for name in LINKED:
        made.append(Bad("linked key", BASE, (f"data.{name}",), (f"--data.{name}=1",)))
        made.append(Bad("linked key", changed(("data", "init_args", name), "1"), (f"data.{name}",)))
    return made + list(files())


def chosen(cases: list[Bad], count: int) -> list[Bad]:
    """Evenly from all kinds."""
    return [cases[(i * len(cases)) // count] for i in range(count)]


def run(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a model or data file fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a model or data file was opened before the config was refused")

    import benchmarks.cli.app  # noqa: F401  # so that every module is there

    doors = ("pretrained_folder", "fetch", "locate", "read_atomic_file", "load_tokenizer", "context_length")
    sealed = 0
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("recmodels", "datamodules", "benchmarks"):
            for door in doors:
                if hasattr(module, door):
                    monkeypatch.setattr(module, door, refuse)
                    sealed += 1
    assert sealed >= 8


def attempt(bad: Bad, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], bool]:
    """What went wrong with the refusal, and whether the nearest key was offered where there is one."""
    path = folder / "bad.yaml"
    path.write_bytes(bad.config if isinstance(bad.config, bytes) else yaml.safe_dump(bad.config).encode())
    out = () if "--out" in bad.options else ("--out", str(folder / "run"))
    capsys.readouterr()
    begin = time.process_time()
    code = run(["fit", "-c", str(path), *out, *bad.options])
    seconds = time.process_time() - begin
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("instructrec:")]
    wrong = []
    if code != 2:
        wrong.append(f"exit code {code}")
    if len(lines) != 1 or len(printed.err.splitlines()) != 1:
        wrong.append(f"{len(printed.err.splitlines())} lines")
    if seconds > SECONDS:
        wrong.append(f"{seconds:.1f} s")
    message = " ".join(lines)
    if bad.expected and not any(word in message for word in bad.expected):
        wrong.append(f"none of {bad.expected} in it")
    if (folder / "run").exists():
        wrong.append("it left a folder behind")
    near = re.findall(r"nearest(?: is|:| one is| packaged one is) '?([\w.\-]+)", message)
    offered = bad.nearest is not None and bool(near) and bad.nearest in near[-1].split(".")
    return [f"{bad} -> {one}: {printed.err[-300:]}" for one in wrong], offered


WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]


def refuse_all(bads: list[Bad], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], float]:
    """What went wrong, config by config, and the share of those with a nearest valid key that were offered it."""
    problems: list[str] = []
    offered = []
    for number, bad in enumerate(bads):
        (folder / str(number)).mkdir()
        wrong, near = attempt(bad, folder / str(number), capsys)
        problems += wrong
        if bad.nearest is not None:
            offered.append(near)
    return problems, sum(offered) / max(1, len(offered))


def test_the_config_that_the_bad_ones_come_from_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(BASE))
    assert run(["fit", "-c", str(tmp_path / "good.yaml"), "--print_config"]) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("sealed")
def test_bad_configs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problems, offered = refuse_all(chosen(cases(), SHORT), tmp_path, capsys)
    assert not problems, "\n".join(problems)
    assert offered >= 0.9


@pytest.mark.faults
@pytest.mark.usefixtures("sealed")
def test_two_hundred_bad_configs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bads = cases()
    assert len(bads) >= COUNT
    problems, offered = refuse_all(bads, tmp_path, capsys)
    typos = sum(bad.nearest is not None for bad in bads)
    tally.add(
        "bad configs refused in one line, exit 2, under 3 s, before a model or data file is opened",
        len(bads),
        len(bads) - len({one.split(" -> ")[0] for one in problems}),
    )
    tally.add("mistyped names that were offered the one that was meant", typos, round(offered * typos))
    assert not problems, "\n".join(problems)
    assert offered >= 0.9
