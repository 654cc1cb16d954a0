"""Inputs are data: nothing in a config, a file, a template, an archive or a backbone runs; the canary is never made."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.__main__ import main
from datamodules.contract.errors import InputError
from datamodules.contract.objectives import ModelNeeds
from datamodules.instructions.sandbox import compile_template
from datamodules.sources.fetch import fetch
from datamodules.sources.kinds import LocalFile
from tests.faults import tally

WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]

Arguments = dict[str, Any]


class Pickled:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class Trap:
    """A folder with files that make the canary if anything in them runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary = folder, folder / "canary"
        self.command = f"touch {self.canary}"
        self.python = f"open({str(self.canary)!r}, 'w')"
        self.pickle = folder / "evil.pkl"
        self.pickle.write_bytes(pickle.dumps(Pickled(self.command)))
        self.torch = folder / "evil.ckpt"
        torch.save({"state_dict": {}, "instructrec": Pickled(self.command)}, self.torch)
        self.script = folder / "evil.py"
        self.script.write_text(self.python)
        (folder / "hubconf.py").write_text(f"{self.python}\ndef model(): pass\n")

    def named(self) -> dict[str, Arguments]:
        """Dotted names with the arguments that would make the canary, or that have no business in a config."""
        run = {"args": ["touch", str(self.canary)]}
        return {
            "os.system": {"command": self.command},
            "posix.system": {"command": self.command},
            "subprocess.Popen": run,
            "subprocess.run": run,
            "runpy.run_path": {"path_name": str(self.script)},
            "torch.load": {"f": str(self.torch), "weights_only": False},
            "torch.serialization.load": {"f": str(self.torch), "weights_only": False},
            "torch.hub.load": {"repo_or_dir": str(self.folder), "model": "model", "source": "local"},
            "torch.utils.collect_env.run": {"command": self.command},
            "torch.jit.load": {"f": str(self.torch)},
            "builtins.exec": {"source": self.python},
            "builtins.eval": {"source": self.python},
            "builtins.open": {"file": str(self.canary), "mode": "w"},
            "importlib.import_module": {"name": "evil"},
            "pickle.load": {"file": str(self.pickle)},
            "numpy.load": {"file": str(self.pickle), "allow_pickle": True},
            "pathlib.Path": {},
            "functools.partial": {"func": "os.system"},
            "jsonargparse.set_parsing_settings": {"import_path_allowlist": ["os"]},
            "wandb.init": {"settings": {"start_method": "fork"}},
            "transformers.AutoModel.from_pretrained": {"trust_remote_code": True},
            # Out of our own and the allowed packages, by what they import.
            "recmodels.base.torch.load": {"f": str(self.torch), "weights_only": False},
            "recmodels.base.torch.hub.load": {"repo_or_dir": str(self.folder), "source": "local"},
            "callbacks.training_guard.torch.load": {"f": str(self.torch), "weights_only": False},
            "callbacks.training_guard.Path": {},
            "datamodules.sources.downloads.subprocess.run": run,
            "datamodules.sources.pretrained.shutil.rmtree": {"path": str(self.folder)},
            "datamodules.sources.pretrained.os.system": {"command": self.command},
            "recmodels.methods.lora.LoRATuning.__init__.__globals__": {},
            "benchmarks.launchers.local.subprocess.Popen": run,
            "lightning.pytorch.callbacks.lambda_function.Callable": {},
            "lightning.pytorch.loggers.wandb.os.system": {"command": self.command},
            "lightning.pytorch.strategies.launchers.subprocess_script.subprocess.Popen": run,
            "torch.optim.lr_scheduler.warnings.warn": {"message": "x"},
            # Defined inside the allowed packages, and yet not of a kind that a config builds.
            "datamodules.sources.fetch.fetch": {"source": "x"},
            "callbacks.training_guard.load_trained": {"path": str(self.torch)},
            "recmodels.backbones.base.load_causal": {"name": str(self.folder), "precision": "float32"},
            "lightning.pytorch.Trainer": {},
            "lightning.pytorch.cli.LightningCLI": {},
            "lightning.pytorch.core.saving._load_state": {},
            "lightning.pytorch.utilities.migration.migrate_checkpoint": {},
            "torch.optim.Adam.load_state_dict": {"state_dict": {}},
            "torch.optim.lr_scheduler.LambdaLR": {"lr_lambda": "os.system"},
            "torch.optim.swa_utils.AveragedModel": {},
            "torch.optim.swa_utils.get_ema_multi_avg_fn": {},
        }


SLOTS = (
    "model",
    "data",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.plugins",
    "trainer.strategy",
    "trainer.profiler",
    "trainer.accelerator",
    "model.optimizer",
    "model.schedule",
    "model.backbone",
    "data.protocol",
    "data.data_dir",
    "ckpt_path",
)
CALLABLES = {  # classes of the allowed kinds that take a function
    "trainer.callbacks": [
        ("LambdaCallback", "on_fit_start"),
        ("LambdaCallback", "setup"),
        ("StochasticWeightAveraging", "avg_fn"),
        ("ThroughputMonitor", "batch_size_fn"),
        ("ModelPruning", "pruning_fn"),
        ("BackboneFinetuning", "lambda_func"),
        ("WeightAveraging", "avg_fn"),
    ],
    "trainer.strategy": [("DDPStrategy", "ddp_comm_hook"), ("FSDPStrategy", "auto_wrap_policy")],
    "trainer.profiler": [("PyTorchProfiler", "schedule")],
}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    monkeypatch.chdir(tmp_path)
    return Trap(tmp_path)


@pytest.fixture
def call(
    mini_data: Path, tiny_causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command with two training steps at the most; returns its exit code and what went to stderr."""

    def run(*words: str | Path, command: str = "fit") -> tuple[int, str]:
        small = ("--trainer.max_steps=1", "--data.protocol.negatives=4")
        capsys.readouterr()
        try:
            code = main([command, "--out", str(tmp_path / "run"), *map(str, words), *small])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


def attacks(trap: Trap) -> list[tuple[str, ...]]:
    """Every dotted name in every slot: as a class with arguments, and as a bare name."""
    made: list[tuple[str, ...]] = []
    for slot in SLOTS:
        rest = [f"--{name}={cls}" for name, cls in (("model", "LoRATuning"), ("data", "MovieLens100K")) if name != slot]
        for name, arguments in trap.named().items():
            spec: Any = {"class_path": name, "init_args": arguments}
            value = json.dumps([spec] if slot in ("trainer.callbacks", "trainer.logger") else spec)
            made.append((*rest, f"--{slot}={value}"))
            if slot in ("model", "data", "model.optimizer"):
                made.append((*rest, f"--{slot}={name}"))
        for cls, argument in CALLABLES.get(slot, []):
            for name in ("os.system", "datamodules.sources.fetch.fetch", "callbacks.CostMeter"):
                spec = {"class_path": cls, "init_args": {argument: name}}
                made.append((*rest, f"--{slot}={json.dumps([spec] if slot == 'trainer.callbacks' else spec)}"))
    return made


def refused(trap: Trap, call: Callable[..., tuple[int, str]], attempts: list[tuple[str, ...]]) -> list[str]:
    problems = []
    for words in attempts:
        code, err = call(*words)
        told = [line for line in err.splitlines() if line.startswith("instructrec:")]
        if trap.canary.exists() or code != 2 or len(told) != 1 or "Traceback" in err:
            problems.append(f"{words[-1]}: canary {trap.canary.exists()}, exit code {code}, {err[-300:]}")
            trap.canary.unlink(missing_ok=True)
    return problems


def test_the_traps_work(trap: Trap) -> None:
    """Each kind of file makes the canary in the hands of whoever runs it."""
    for spring in (
        lambda: pickle.loads(trap.pickle.read_bytes()),
        lambda: torch.load(trap.torch, weights_only=False),
        lambda: exec(trap.script.read_text()),
        lambda: os.system(trap.command),
        lambda: yaml.unsafe_load(f"!!python/object/apply:os.system ['{trap.command}']"),
        lambda: np.load(trap.pickle, allow_pickle=True),
    ):
        spring()
        assert trap.canary.exists()
        trap.canary.unlink()


def test_names_in_configs_run_nothing(trap: Trap, call: Callable[..., tuple[int, str]]) -> None:
    """The short form: every name once and every slot at least once."""
    everything = attacks(trap)
    problems = refused(trap, call, everything[::23])
    assert not problems, "\n".join(problems)


@pytest.mark.faults
def test_every_name_in_every_slot_runs_nothing(trap: Trap, call: Callable[..., tuple[int, str]]) -> None:
    everything = attacks(trap)
    problems = refused(trap, call, everything)
    tally.add("names of code in config slots that ran nothing", len(everything), len(everything) - len(problems))
    assert not problems, "\n".join(problems)


def config_files(trap: Trap) -> Iterator[tuple[str, str]]:
    """Name and content of config files with more than data in them."""
    for tag in (
        f"!!python/object/apply:os.system ['{trap.command}']",
        f"!!python/object/apply:subprocess.Popen [[touch, {trap.canary}]]",
        f"!!python/object/new:os.system ['{trap.command}']",
        "!!python/name:os.system",
        "!!python/module:evil",
        f'!!python/object/apply:builtins.exec ["{trap.python}"]',
        "!!timestamp 2001-01-01",
        "!include evil.yaml",
    ):
        yield f"tag {tag[:30]}", f"model: {tag}\n"
    yield "its own allowance", "allow_import: [os]\nmodel: {class_path: os.system}\n"
    yield "its own allowance", "allow-import: os\nmodel: {class_path: os.system}\n"
    yield "a merge key", "x: &x {class_path: os.system}\nmodel: {<<: *x}\n"


def test_tags_and_allowances_in_config_files_run_nothing(trap: Trap, call: Callable[..., tuple[int, str]]) -> None:
    for name, text in config_files(trap):
        path = trap.folder / "bad.yaml"
        path.write_text(text)
        code, err = call("--data=MovieLens100K", "-c", path)
        assert not trap.canary.exists(), name
        assert code == 2, f"{name}: {err}"
        suite = trap.folder / "suite.yaml"
        suite.write_text(f"name: t\naxes: {{m: [bad.yaml]}}\n{text.replace('model:', 'description:')}")
        assert main(["benchmark", str(suite), "--out", str(trap.folder / "grid"), "--dry-run"]) == 2, name
        assert not trap.canary.exists(), name


@pytest.mark.parametrize("key", ["allow-import", "allow_import", "-allow-import", "config", "out"])
def test_a_suite_cannot_widen_what_may_be_named(trap: Trap, key: str) -> None:
    suite = trap.folder / "suite.yaml"
    for text in (f"name: t\naxes: {{{key}: [evil]}}\n", f"name: t\naxes: {{s: [1]}}\noverrides: {{{key}: evil}}\n"):
        suite.write_text(text)
        code = main(["benchmark", str(suite), "--out", str(trap.folder / "grid"), "--dry-run"])
        assert (code == 2) == (key != "allow_import")  # which no command knows: the cell's own parse refuses it
        assert not trap.canary.exists()


def test_a_suite_of_names_runs_nothing(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of a suite are commands of their own; here each is parsed as its process would."""
    from benchmarks.grid.cells import expand
    from benchmarks.grid.suite import load_suite

    suite = trap.folder / "suite.yaml"
    values = [{"class_path": name} for name in ("os.system", "torch.hub.load", "datamodules.sources.fetch.fetch")]
    suite.write_text(json.dumps({"name": "t", "axes": {"model.optimizer": [json.dumps(value) for value in values]}}))
    cells = expand(load_suite(suite), trap.folder / "grid")
    assert len(cells) == 3
    for cell in cells:
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([*cell.command[1:], "--model=LoRATuning", "--data=MovieLens100K"]))
        assert end.value.code == 2
        assert not trap.canary.exists()


ENVIRONMENT = {
    "JSONARGPARSE_DEFAULT_ENV": "true",
    "PL_CONFIG": "bad.yaml",
    "PL_FIT__CONFIG": "bad.yaml",
    "PL_FIT__MODEL": "os.system",
    "PL_FIT__MODEL__R": "4",
    "PL_FIT__TRAINER__MAX_STEPS": "77",
    "PL_FIT__TRAINER__CALLBACKS": '[{"class_path": "os.system"}]',
    "INSTRUCTREC_ALLOW_IMPORT": "os",
    "PYTHONSTARTUP": "evil.py",
}


def test_the_environment_sets_no_option(
    trap: Trap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trap.folder / "bad.yaml").write_text(f"model: !!python/object/apply:os.system ['{trap.command}']\n")
    words = ["fit", "--model=LoRATuning", "--data=MovieLens100K", "--print_config"]
    printed = []
    for environment in ({}, ENVIRONMENT):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "max_steps" in printed[0]
    assert not trap.canary.exists()


def test_a_pickle_as_a_checkpoint_is_one_line(
    trap: Trap, call: Callable[..., tuple[int, str]], tiny_causal: Path
) -> None:
    base = ("--model=LoRATuning", f"--model.backbone={tiny_causal}", "--data=MovieLens100K", "--trainer.logger=false")
    zipped = trap.folder / "zipped.ckpt"
    with zipfile.ZipFile(zipped, "w") as bag:
        bag.writestr("archive/data.pkl", pickle.dumps(Pickled(trap.command)))
        bag.writestr("archive/version", "3")
        bag.writestr("archive/byteorder", "little")
    for path in (trap.torch, trap.pickle, zipped):
        for command in ("test", "validate"):
            code, err = call(*base, "--ckpt_path", path, command=command)
            told = [line for line in err.splitlines() if line.startswith("instructrec:")]
            assert not trap.canary.exists()
            assert code == 2, err
            assert len(told) == 1
            assert path.name in told[0]


def test_pickles_in_stored_scores_do_not_run(trap: Trap) -> None:
    from benchmarks.analysis.scores import read_scores

    path = trap.folder / "scores.npz"
    evil = np.empty(1, dtype=object)
    evil[0] = Pickled(trap.command)
    np.savez(path, user=evil, mrr=np.ones(1))
    with pytest.raises(InputError, match="damaged"):
        read_scores(path, None)
    for content in (trap.pickle.read_bytes(), trap.torch.read_bytes()):
        path.write_bytes(content)
        with suppress(InputError):  # or it is a zip that holds no scores
            assert not read_scores(path, None).values
    assert not trap.canary.exists()


CODE = (
    "__import__('os').system('{}')",
    "[].__class__",
    "{{ 7 * 7 }}",
    "{{% for x in [1] %}}!{{% endfor %}}",
    "$(touch {})",
)


def test_code_in_data_is_a_title(trap: Trap, mini_data: Path) -> None:
    """List columns, ids and titles that are Python, shell or a template stay the words that they are."""
    from datamodules.batching.predict_file import read_requests
    from datamodules.datasets.movielens import MovieLens100K

    source = mini_data / "ml-100k"
    lines = (source / "ml-100k.item").read_text().splitlines()
    titles = [text.replace("{}", str(trap.canary)) for text in CODE]
    for number, title in enumerate(titles, start=1):
        fields = lines[number].split("\t")
        fields[1] = title
        lines[number] = "\t".join(fields)
    (trap.folder / "ml-100k.item").write_text("\n".join(lines) + "\n")
    (trap.folder / "ml-100k.inter").write_bytes((source / "ml-100k.inter").read_bytes())
    data = MovieLens100K(data_dir=trap.folder, needs=ModelNeeds("interactions"))
    data.setup()
    assert set(titles) <= set(data.sequences.titles)
    prompts = [data.sample_prompt("test", case) for case in range(len(data.cases("test")))]
    assert any("{{ 7 * 7 }}" in prompt for prompt in prompts)
    assert not any("49" in prompt.replace("1949", "") for prompt in prompts)
    requests = trap.folder / "users.jsonl"
    requests.write_text(json.dumps({"history": [titles[0]], "candidates": [titles[1]]}) + "\n")
    assert len(read_requests(requests, data.sequences.item_ids, data.sequences.titles)) == 1
    for text in (f"__import__('os').system('{trap.command}')", trap.pickle.read_bytes().decode("latin-1")):
        requests.write_text(text)
        with pytest.raises(InputError, match=r"users\.jsonl:"):
            read_requests(requests, data.sequences.item_ids, data.sequences.titles)
    assert not trap.canary.exists()


TEMPLATES = {
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape by attr": "{{ history | attr('__class__') }}",
    "escape by format": "{{ '{0.__class__}'.format(history) }}",
    "escape by getitem": "{{ history['__class__'] }}",
    "escape by cycler": "{{ cycler.__init__.__globals__.os.system('x') }}",
    "import": "{% import 'os' as o %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
    "huge range": "{% for x in range(10**9) %}x{% endfor %}",
    "sandboxed range": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
    "nested loops": "{% for a in history %}{% for b in history %}{{ b }}{% endfor %}{% endfor %}",
    "long output": "{{ 'x' * 10**10 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for a in history %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for a in history recursive %}{{ loop(history) }}{% endfor %}",
    "joins of joins": "{{ history | join('; ') | join('; ') | join('; ') | join('; ') }}",
    "join by itself": "{{ history | join(history | join('; ')) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "indent": "{{ target | indent(10000000000) }}",
    "format filter": "{{ '%10000000000d' | format(7) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "batch": "{{ history | batch(100000000) }}",
    "long text": "x" * 100_000,
    "deep text": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "unclosed": "{% for x in history %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_neither_escape_nor_explode(name: str) -> None:
    from jinja2.exceptions import SecurityError

    begin = time.process_time()
    with pytest.raises(SecurityError):
        compile_template(TEMPLATES[name]).render(history=["Alien"] * 50, target="Heat", words={})
    assert time.process_time() - begin < 2


def links(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def archives(folder: Path) -> Iterator[tuple[str, Path]]:
    for name in ("../canary", "/canary", "a/../../canary", "..\\canary", "C:\\canary", "./../canary"):
        path = folder / f"slip-{len(list(folder.iterdir()))}.zip"
        with zipfile.ZipFile(path, "w") as bag:
            bag.writestr("u.data", "1")
            bag.writestr(name if name != "/canary" else f"{folder}/canary", "x")
        yield f"zip {name}", path
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as tar:
            for member in ("u.data", name if name != "/canary" else f"{folder}/canary"):
                info = tarfile.TarInfo(member)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
        yield f"tar {name}", path
    path = folder / "link.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(links("u.data", "/etc/passwd"))
    yield "tar link", path
    path = folder / "hard.tar"
    with tarfile.open(path, "w") as tar:
        info = links("u.data", "../../etc/passwd")
        info.type = tarfile.LNKTYPE
        tar.addfile(info)
    yield "tar hard link", path
    path = folder / "link.zip"
    with zipfile.ZipFile(path, "w") as bag:
        info = zipfile.ZipInfo("u.data")
        info.external_attr = (0o120777 << 16) | 0
        bag.writestr(info, "/etc/passwd")
    yield "zip link", path
    path = folder / "device.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("u.data")
        info.type = tarfile.CHRTYPE
        tar.addfile(info)
    yield "tar device", path
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bag, bag.open("u.data", "w", force_zip64=True) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    yield "zip bomb", path
    path = folder / "liar.zip"
    content = bytearray((folder / "bomb.zip").read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (1).to_bytes(4, "little")  # the size that the index claims
    path.write_bytes(content)
    yield "zip bomb that lies about its size", path


def test_archives_write_nothing_outside_and_no_more_than_allowed(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(trap.folder / "cache"))
    (trap.folder / "archives").mkdir()
    found = 0
    for name, path in archives(trap.folder / "archives"):
        begin = time.process_time()
        with pytest.raises(InputError):
            fetch(LocalFile(path, members=("*u.data",), max_member_bytes=1 << 20))
        assert time.process_time() - begin < 5, name
        assert not list(trap.folder.rglob("canary")), name
        assert not Path("/canary").exists(), name
        written = sum(file.stat().st_size for file in (trap.folder / "cache").rglob("*") if file.is_file())
        assert written < 4 << 20, name
        found += 1
    assert found >= 18
