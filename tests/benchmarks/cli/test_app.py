"""The command line as users meet it: every committed config runs, bad input is one line and exit code 2."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml

import datamodules
from benchmarks.__main__ import main
from benchmarks.analysis.beyond_accuracy import read_facts
from callbacks.resume import checkpoints_in
from datamodules.contract.checkpoints import read_checkpoint
from datamodules.datasets.movielens import MovieLens100K
from datamodules.protocol.rules import Protocol
from recmodels.objectives import Likelihood
from tests.benchmarks.report.wandb_files import wandb_records
from tests.datamodules.datasets.miniatures import MINIATURES

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = {
    group: sorted((ROOT / "configs" / group).rglob("*.yaml"))
    for group in ("model", "objective", "data", "items", "trainer", "logger", "callbacks")
}
SUITES = sorted((ROOT / "benchmarks" / "suites").rglob("*.yaml"))
FAST = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.protocol.negatives=6", "--data.batch_size=2"]
QUIET = ["--trainer.logger=false"]
WARNINGS = ("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
# What libraries warn of while whole commands run is theirs; the packages' own tests run with warnings as errors.
pytestmark = [pytest.mark.filterwarnings(rule) for rule in WARNINGS]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(mini_data: Path, tiny_causal: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, with tiny backbones; returns the exit code and what went to stderr."""

    def call(*arguments: str | Path, model: Path | None = None) -> tuple[int, str]:
        words = [str(a) for a in arguments]
        backbone = backbone_of(model, tiny_causal, tiny_encoder) if model else None
        if backbone:
            words.append(f"--model.backbone={backbone}")
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        wandb.finish()  # in real life every run is a process of its own
        return code, capsys.readouterr().err

    return call


def backbone_of(model: Path, causal: Path, encoder: Path) -> Path | None:
    cls = class_of(model)
    if "backbone" not in inspect.signature(cls).parameters and cls.batch_format != "prompt_tree":
        return None
    return causal if cls.batch_format == "prompt_tree" else encoder


def class_of(model: Path) -> Any:
    import recmodels

    return getattr(recmodels, yaml.safe_load(model.read_text())["model"]["class_path"])


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "record.json").read_text())
    return found


def test_configs_are_found() -> None:
    assert all(CONFIGS.values())
    assert SUITES
    named = sum(len(files) for files in CONFIGS.values())
    assert named == len(list((ROOT / "configs").rglob("*.yaml"))), "a folder of configs that no test runs"


@pytest.mark.parametrize(
    "path", [p for files in CONFIGS.values() for p in files], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_a_config_says_how_to_run_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# "), "the first line is the command that runs it"
    assert "instructrec" in first
    assert len(path.read_text().splitlines()) <= 40


FIRST = ("ml_100k", "ml_100k_full", "ml_100k_like", "ml_100k_reranking", "ml_100k_zh")


def _miniature(data: Path, at: Path) -> list[str]:
    """Writes the miniature of a config's data set under the names that the config gives its files; options for it."""
    told = yaml.safe_load(data.read_text())["data"]
    name, options = told["class_path"], told.get("init_args", {})
    if name == "MovieLens100K" or name not in MINIATURES:  # conftest has those
        return []
    MINIATURES[name](at)
    known = inspect.signature(getattr(datamodules, name)).parameters
    named = {key: options.get(key, value.default) for key, value in known.items()}
    stem = str(named.get("stem") or named.get("folder"))
    for file in [path for path in at.iterdir() if path.is_file()]:
        file.rename(at / re.sub(r"^toy\.", f"{stem}.", file.name.replace("Toys", str(named.get("category")))))
    columns = ['--data.columns={"item": "sku"}', "--data.time=%Y-%m-%d"] if name == "Tabular" else []
    return [f"--data.data_dir={at}", "--data.protocol.negatives=3", *columns]


def _pairs() -> Iterator[Any]:
    """One model of each batch format on all data; every other one on sampled candidates and on the whole catalogue.

    PEFT's many methods are one class, so that one form tells as much of each of them as all.
    """
    formats = ("lora", "token_classification", "popularity")
    for model, data in product(CONFIGS["model"], CONFIGS["data"]):
        lead = model.stem in formats and model.parent.name == "model"
        own = data.stem in FIRST[: None if lead else 2 if model.parent.name == "model" else 1]
        textless = yaml.safe_load(data.read_text())["data"]["class_path"] in MINIATURES
        if own or (model.stem in (formats[-1:] if textless else formats) and model.parent.name == "model"):
            yield pytest.param(model, data, id=f"{model.stem}-{data.stem}")


def _refusal(model: Path, options: dict[str, Any]) -> str:
    """Why a model cannot answer what a data config asks, or tune the tiny backbone; empty where it can."""
    if model.parent.name == "partial" and model.stem == "bias":
        return (
            "model.part is 'bias', and backbone"  # a Llama, which has none; the table of families has those that have
        )
    form = str(options.get("task") or options.get("cell", "").rpartition(",")[2])
    read = class_of(model).batch_format
    if form in ("like", "rating", "T0") and read != "prompt_tree":
        return "needs a model that answers in text"
    plain = options.get("cell", "P1,I0").startswith("P1,I0") and "mixture" not in options
    return "" if plain or read != "tagged_text" else "this one reads titles only"


@pytest.mark.parametrize(("model", "data"), list(_pairs()))
def test_every_model_runs_on_every_data_set(run: Run, tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "run"
    folder = _miniature(data, tmp_path / "data")
    code, err = run("fit", "-c", model, "-c", data, "--out", out, *FAST, *QUIET, *folder, model=model)
    options = yaml.safe_load(data.read_text())["data"].get("init_args", {})
    if reason := _refusal(model, options):
        assert code == 2
        assert err.strip().count("\n") == 0
        assert reason in err
        return
    assert code == 0, err
    made = record(out)
    assert made["status"] == "finished"
    assert made["config"]["model"]["class_path"].endswith(made["model"]["class"])
    assert len(made["protocol"]["fingerprint"]) == 64
    assert (out / "config.yaml").is_file()
    scores = np.load(out / "scores.npz", allow_pickle=False)
    assert len(scores["user"]) == (24 if data.stem.startswith("ml_100k") else len(scores["case_start"]) - 1) > 0
    assert np.isfinite(scores["score"]).all()
    facts = read_facts(out)[0]
    assert facts is not None
    assert facts.popularity.sum() > 0
    assert (facts.history >= 0).all()
    assert len(facts.feature_start) == len(facts.popularity) + 1
    if made["protocol"]["task"] == "binary":
        # All cases of a miniature may have one answer; AUC is then undefined.
        assert 0 <= made["metrics"]["test/auc"] <= 1 or not 0 < scores["label"].mean() < 1
        assert ((scores["probability"] > 0) & (scores["probability"] < 1)).all()
    elif made["protocol"]["task"] == "rating":
        assert made["metrics"]["test/rmse"] == pytest.approx(scores["mse"].mean() ** 0.5, abs=1e-6)
        assert made["metrics"]["test/mae"] == pytest.approx(scores["mae"].mean(), abs=1e-6)
    else:
        assert made["metrics"]["test/mrr"] == pytest.approx(scores["mrr"].mean(), abs=1e-6)
    if made["kind"] == "tuned":
        assert made["guards"]["reloaded_score_difference"] == 0
        assert made["guards"]["parameters_moved"] > 0
        assert made["guards"]["frozen_unchanged"] is True
        assert made["guards"].get("step0_score_difference", 0) < 1e-4
        assert not (out / "resume").exists(), "a finished run has nothing to continue"
        kept = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert sum(v.numel() for v in kept.values()) == made["costs"]["trainable_parameters"]


@pytest.mark.parametrize(
    "overlay",
    [path for group in ("objective", "items", "trainer", "logger", "callbacks") for path in CONFIGS[group]],
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_every_overlay_runs(run: Run, tmp_path: Path, overlay: Path) -> None:
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    named = re.search(r"configs/data/\S+", overlay.read_text().splitlines()[0])
    data = ROOT / (named.group() if named else "configs/data/ml_100k.yaml")
    code, err = run("fit", "-c", model, "-c", data, "-c", overlay, "--out", out, *FAST, model=model)
    assert code == 0, err
    assert record(out)["status"] == "finished"
    if overlay.stem == "tensorboard":
        assert list(out.rglob("events.out.tfevents*"))


NOT_OF_THE_CODE = r"--(seed_everything|model\.backbone|trainer\.|name|data\.protocol\.(test|validation)_users)"


def shape_of(command: tuple[str, ...]) -> tuple[str, ...]:
    """A cell's command but for its numbers, its length and its name."""
    words = [word for word in command[1:-2] if not re.match(NOT_OF_THE_CODE, word)]
    return tuple(sorted(re.sub(r"=[\d.e-]+$", "=N", word) for word in words))


@functools.cache
def first_suites() -> dict[tuple[str, ...], Path]:
    """By shape, the first suite that has such a cell; the others need not run it once more."""
    from benchmarks.grid.cells import expand
    from benchmarks.grid.suite import load_suite

    found: dict[tuple[str, ...], Path] = {}
    for suite in SUITES:
        for cell in expand(load_suite(suite), ROOT / "results/none"):
            found.setdefault(shape_of(tuple(cell.command)), suite)
    return found


@pytest.mark.parametrize("suite", SUITES, ids=lambda p: p.stem)
def test_every_value_on_every_axis_of_every_suite_runs(
    run: Run, tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.grid.cells import expand
    from benchmarks.grid.suite import load_suite

    monkeypatch.chdir(ROOT)
    cells = expand(load_suite(suite), tmp_path / "grid")
    assert cells
    options: dict[Path, list[str]] = {}
    seen: set[object] = set()
    for cell in cells:
        # A cell whose every value has run in another would tell nothing new of the suite.
        values = {label for label in cell.labels if label[0] != "seed_everything"} or {"the only cell"}
        if values <= seen or first_suites()[shape_of(tuple(cell.command))] != suite:
            continue
        # The miniature has four examples to train on; another seed, size or length is the same code once more.
        words = [re.sub(r"(?<=protocol\.shots=)\d+", "4", word) for word in cell.command[1:]]
        words = [re.sub(r"(--model\.layers)=\d+", r"\1=2", word) for word in words]  # as many as the tiny backbone has
        told = tuple(w for w in words[:-2] if not re.match(r"--(seed_everything|model\.backbone|trainer\.|name)", w))
        if told in seen:
            continue
        seen |= {told, *values}
        model, data = (next(ROOT / w for w in words if f"configs/{axis}/" in w) for axis in ("model", "data"))
        if data not in options:
            (at := tmp_path / data.stem).mkdir()
            options[data] = _miniature(data, at)
        # An axis of the suite keeps its values, or the test would run one cell again and again; but for the length.
        own = {word.partition("=")[0] for word in words if word.startswith("--") and "trainer." not in word}
        fast = [word for word in FAST if word.partition("=")[0] not in own] + options[data]
        code, err = run(*words, *fast, *QUIET, "--data.protocol.test_users=8", model=model)
        assert code == 0, f"{cell.title}: {err}"
        assert record(tmp_path / "grid" / "runs" / cell.name)["cell"] == cell.name


@pytest.mark.parametrize("name", ["bpr", "sasrec", "sasrec_bce", "bert4rec"])
def test_adam_takes_no_weight_decay_over_from_the_default_optimizer(run: Run, tmp_path: Path, name: str) -> None:
    """AdamW's 0.01, kept when the class is switched, is a penalty in Adam: all weights of SASRec went to zero."""
    words = ["-c", ROOT / f"configs/model/{name}.yaml", "-c", ROOT / "configs/data/ml_100k_full.yaml"]
    code, err = run("fit", *words, "--out", tmp_path / "run", *FAST, *QUIET)
    assert code == 0, err
    optimizer = record(tmp_path / "run")["config"]["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert optimizer["init_args"]["weight_decay"] == 0


def test_later_configs_and_options_win(run: Run, tmp_path: Path) -> None:
    model = ROOT / "configs/model/lora.yaml"
    out = tmp_path / "run"
    words = ["-c", model, "-c", ROOT / "configs/data/ml_100k.yaml", "--model.r", "3", "--data.protocol.history", "4"]
    code, err = run("fit", *words, "--data.targets_per_window=4", "--out", out, *FAST, *QUIET, model=model)
    assert code == 0, err
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["init_args"]["r"] == 3
    assert config["data"]["init_args"]["protocol"]["history"] == 4
    assert "backbone" not in config["data"]["init_args"], "derived from the model's, so never written twice"


def test_a_checkpoint_tests_and_predicts_as_it_was_trained(run: Run, tmp_path: Path, users_file: Path) -> None:
    model, data = ROOT / "configs/model/lora.yaml", ROOT / "configs/data/ml_100k.yaml"
    first, again, served = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    code, err = run("fit", "-c", model, "-c", data, "--out", first, *FAST, *QUIET, model=model)
    assert code == 0, err
    checkpoint = first / "checkpoints" / record(first)["guards"]["tested_checkpoint"]
    base = ["-c", first / "config.yaml", "--ckpt_path", checkpoint]
    assert run("test", *base, "--out", again, "--data.eval_batch_size=3")[0] == 0
    one, other = (np.load(folder / "scores.npz") for folder in (first, again))
    np.testing.assert_allclose(one["score"], other["score"], atol=0.1)  # bfloat16 and another batch size
    code, err = run("predict", *base, "--out", served, "--data.predict_file", users_file)
    assert code == 0, err
    rows = [json.loads(line) for line in (served / "predictions.jsonl").read_text().splitlines()]
    assert [row["user"] for row in rows] == ["new-1", "2"]
    assert {r["item"] for r in rows[1]["ranking"]} == {"4", "8", "9"}
    assert sum(r["probability"] for r in rows[1]["ranking"]) == pytest.approx(1, abs=1e-4)
    scores = [r["score"] for r in rows[0]["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert not {"1", "2", "3"} & {r["item"] for r in rows[0]["ranking"]}


def test_beam_search_runs_from_fit_to_predictions(
    run: Run, tmp_path: Path, users_file: Path, titles: list[str]
) -> None:
    model, data = ROOT / "configs/model/lora.yaml", ROOT / "configs/data/ml_100k_full.yaml"
    found, whole, served = tmp_path / "beam", tmp_path / "whole", tmp_path / "served"
    beam = ["--model.retrieval=beam", "--model.beams=4", "--model.cutoffs=[1,3,4]", "--trainer.precision=32-true"]
    code, err = run("fit", "-c", model, "-c", data, "--out", found, *beam, *FAST, *QUIET, model=model)
    assert code == 0, err
    checkpoint = found / "checkpoints" / record(found)["guards"]["tested_checkpoint"]
    base = ["-c", found / "config.yaml", "--ckpt_path", checkpoint]
    assert run("test", *base, "--out", whole, "--model.retrieval=exhaustive")[0] == 0
    one, other = (np.load(folder / "scores.npz", allow_pickle=False) for folder in (found, whole))
    assert (one["user"] == other["user"]).all()
    assert (one["total_relevant"] == 1).all()
    assert (one["candidates"] == np.diff(other["case_start"])).all()
    for user in range(24):
        mine, all_ = (slice(*a["case_start"][user : user + 2]) for a in (one, other))
        assert len({titles[item] for item in one["item"][mine]}) == 4
        exhaustive = dict(zip(other["item"][all_].tolist(), other["score"][all_].tolist(), strict=True))
        for item, score in zip(one["item"][mine].tolist(), one["score"][mine].tolist(), strict=True):
            assert score == pytest.approx(exhaustive[item], abs=1e-3)
        missed = one["relevance"][mine].sum() == 0
        assert (one["hr@4"][user] == 0) == missed
        assert one["mrr"][user] <= other["mrr"][user] or not missed
    assert record(found)["metrics"]["test/hr@4"] == pytest.approx(one["hr@4"].mean(), abs=1e-6)
    assert record(found)["costs"]["test_tokens"] < record(whole)["costs"]["test_tokens"]
    code, err = run("predict", *base, "--out", served, "--data.predict_file", users_file)
    assert code == 0, err
    [first, second] = [json.loads(line) for line in (served / "predictions.jsonl").read_text().splitlines()]
    assert len({r["title"] for r in first["ranking"]}) == 4
    assert not {"1", "2", "3"} & {r["item"] for r in first["ranking"]}
    assert {r["item"] for r in second["ranking"]} == {"4", "8", "9"}  # a list is always scored whole


@pytest.mark.parametrize("workers", [0, 2])
def test_the_record_counts_shortened_prompts_and_says_how_long_data_was_waited_for(
    run: Run, tmp_path: Path, with_context: Callable[[int], Path], workers: int
) -> None:
    folder = str(with_context(80))
    options = [f"--model.backbone={folder}", f"--data.num_workers={workers}", *FAST, *QUIET]
    out = tmp_path / "run"
    assert run("fit", *BASE, "--out", out, *options)[0] == 0

    data = MovieLens100K(backbone=folder, protocol=Protocol(negatives=6), batch_size=2, seed=1)
    data.setup("fit")
    training = [batch.truncated for batch in islice(data.train_dataloader(), 2)]  # steps
    validation, test = (
        sum(batch.truncated for batch in loader()) for loader in (data.val_dataloader, data.test_dataloader)
    )
    assert validation > 0
    assert record(out)["guards"]["truncated_prompts"] == sum(training) + 2 * validation + test
    costs = record(out)["costs"]
    for stage in ("train", "test"):
        assert 0 < costs[f"{stage}_data_wait_seconds"] <= costs[f"{stage}_seconds"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_checkpoint_is_one_line(run: Run, tmp_path: Path, damage: str) -> None:
    model = ROOT / "configs/model/lora.yaml"
    path = tmp_path / "damaged.ckpt"
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(999)}, "instructrec": {"model": "LoRATuning"}}, whole)
    path.write_bytes({"truncated": whole.read_bytes()[:700], "empty": b"", "text": b"hello"}[damage])
    words = ["-c", model, "-c", ROOT / "configs/data/ml_100k.yaml", "--ckpt_path", path, "--out", tmp_path / "run"]
    code, err = run("test", *words, *QUIET, model=model)
    lines = [line for line in err.splitlines() if line.startswith("instructrec:")]
    assert code == 2
    assert len(lines) == 1
    assert "damaged.ckpt" in lines[0]


def test_the_offline_wandb_run_reads_back(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "a grid")
    warned: list[str] = []
    monkeypatch.setattr(wandb, "termwarn", lambda text, **_: warned.append(text))
    wandb.teardown()  # it reads the environment once a process, and every run is one
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    words = [
        "-c",
        model,
        "-c",
        ROOT / "configs/data/ml_100k.yaml",
        "--out",
        out,
        *FAST,
        "--trainer.log_every_n_steps=1",
    ]
    assert run("fit", *words, model=model)[0] == 0
    assert not any("anonymous" in text for text in warned)
    keys: dict[str, set[str]] = {"history": set(), "config": set(), "summary": set()}
    wandb.teardown()
    groups: set[str] = set()
    for entry in wandb_records(next(out.rglob("run-*.wandb"))):
        groups.add(entry.run.run_group)
        for group, items in (
            ("history", entry.history.item),
            ("config", entry.config.update),
            ("config", entry.run.config.update),
            ("summary", entry.summary.update),
        ):
            keys[group] |= {item.key or "/".join(item.nested_key) for item in items}
    assert groups - {""} == {"a grid"}
    assert {"train/loss", "train/learning_rate", "val/hr@5", "test/hr@5"} <= keys["history"]
    assert any(key.startswith("model") for key in keys["config"])
    assert any(key.startswith("test/samples") for key in keys["history"] | keys["summary"])
    assert {"cost/trainable_parameters", "record", "protocol"} <= keys["summary"]


BASE = ["--model=LoRATuning", "--data=MovieLens100K"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", *BASE, "--model.rr=3"], "'model.r'"),
        (["fit", *BASE, "--trainer.max_step=3"], "'trainer.max_steps'"),
        (["fit", *BASE, "--data.protocol.negative=3"], "negatives"),
        (["fit", *BASE, "--model.r=abc"], "r: Expected a"),
        (["fit", *BASE, "--model.r=0"], "at least 1"),
        (["fit", *BASE, "--model.objective=likelyhood"], "'likelihood'"),
        (["fit", *BASE, "--model.objective=Listwis"], "'listwise'"),
        (["fit", *BASE, "--model.objective=LoRATuning"], "objective"),
        (["fit", *BASE, "--model.objective=Objective"], "objective"),
        (["fit", *BASE, "--model.objective=os.system"], "objective"),
        (["fit", *BASE, "--model.objective=YesNo"], "'yes_no' needs data.task like"),
        (["fit", *BASE, "--model.objective=Listwise", "--model.objective.temperature=0"], "must be above 0"),
        (
            ["fit", *BASE, "--model.objective=Listwise", "--model.objective.temprature=2"],
            "no option 'model.objective.temprature'; the nearest is 'model.objective.temperature'",
        ),
        (
            ["fit", *BASE, "--data.prompts.langage=en"],
            "no option 'data.prompts.langage'; the nearest is 'data.prompts.language'",
        ),
        (["fit", *BASE, "--data.taks=like"], "no option 'data.taks'; the nearest is 'data.task'"),
        (["fit", *BASE, "--data.prompts.language=fr"], ": data.prompts.language: 'fr' is not one of en, zh"),
        (["fit", *BASE, "--data.protocol.negatives=few"], ": data.protocol.negatives: Expected"),
        (["fit", *BASE, "--model.retrieval=bean"], "'beam'"),
        (["fit", *BASE, "--model.retrieval=beam", "--model.beams=5"], "must be at least 10"),
        (["fit", *BASE, "--data.task=rerank"], "'reranking'"),
        (["fit", *BASE, "--data.template=matching.en.9"], "matching.en."),
        (["fit", *BASE, "--data.template=matching.zh.1"], "does not fit"),
        (["fit", *BASE, "--data.cell=P1,I1,T3"], "a vague intention needs one of query, review"),
        (["fit", *BASE, "--data.cell=P1,I2,T9"], "no code 'T9'"),
        (["fit", *BASE, "--data.cell=P1,I0,T0", "--model.objective=rating"], "needs data.task rating"),
        (["fit", *BASE, "--data.language=fr"], "'fr'"),
        (["fit", *BASE, "--data.protocol.history=0"], "at least 1"),
        (["fit", *BASE, "--data.targets_per_window=11"], "targets_per_window"),
        (["fit", *BASE, "--model.backbone=smollm2-135m-instrukt"], "'smollm2-135m-instruct'"),
        (["fit", "--model=LoRATunin", "--data=MovieLens100K"], "'LoRATuning'"),
        (["fit", "--model=LoRATuning", "--data=MovieLens10K"], "'MovieLens100K'"),
        (["fit", *BASE, "--model.optimizer=os.system"], "must not be named"),
        (["fit", *BASE, "--model.optimizer=Adamm"], "'Adam'"),
        (["fit", "--model=torch.load", "--data=MovieLens100K"], "must not be named"),
        (["fit", "-c", "no/such.yaml"], "no/such.yaml"),
        (["test", *BASE], "needs --ckpt_path"),
        (["test", *BASE, "--ckpt_path=no.ckpt"], "does not exist"),
        (["predict", *BASE], "predict_file"),
        (["fitt"], "'fit'"),
        (["benchmark", "no.yaml", "--out", "x"], "no.yaml"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("weights were read before the input was checked")

    monkeypatch.setattr("recmodels.methods.base.load_backbone", refuse)
    out = ["--out", str(tmp_path / "run")] if arguments[0] in ("fit", "test", "predict") else []
    code, err = run(*arguments, *out)
    lines = [line for line in err.splitlines() if line.startswith("instructrec:")]
    assert code == 2, err
    assert len(lines) == 1
    assert "Traceback" not in err
    assert expected in lines[0], lines[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("data: {class_path: MovieLens100K, init_args: {prompts: {langage: en}}}", "'data.prompts.language'"),
        ("data: {class_path: MovieLens100K, init_args: {prompts: {language: fr}}}", ": data.prompts.language: 'fr'"),
        (
            "model: {class_path: LoRATuning, init_args: {objective: {class_path: Listwise, init_args: {temprature: 3}}}}",
            "nearest is 'temperature'",
        ),
    ],
)
def test_a_wrong_option_of_a_config_is_told_by_the_name_that_it_has_there(
    run: Run, tmp_path: Path, config: str, expected: str
) -> None:
    (tmp_path / "config.yaml").write_text(config)
    code, err = run("fit", *BASE, "-c", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert expected in err


def test_nan_loss_fails_the_run_at_its_step_and_keeps_earlier_checkpoints(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Likelihood.__call__, iter(range(100))

    def spoiled(*args: Any) -> torch.Tensor:
        return original(*args) * (float("nan") if next(calls) == 2 else 1)

    monkeypatch.setattr(Likelihood, "__call__", spoiled)
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    words = ["-c", model, "-c", ROOT / "configs/data/ml_100k.yaml", "--out", out, *FAST, *QUIET]
    code, err = run("fit", *words, "--trainer.max_steps=5", model=model)
    assert code == 1
    assert "non-finite loss at step 2" in err
    made = record(out)
    assert made["status"] == "failed"
    assert "step 2" in made["error"]
    assert "metrics" not in made
    assert 1 <= torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] <= 2


@pytest.mark.parametrize(
    ("where", "expected"), [("gradient", "non-finite gradient at step 2"), ("score", "scores are not finite")]
)
def test_other_non_finite_values_fail_the_run_and_keep_the_best(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, expected: str
) -> None:
    from recmodels.base import Recommender

    calls = iter(range(100))
    check, score = Recommender.on_before_optimizer_step, Recommender.check_scores

    def spoil(self: Recommender, optimizer: Any) -> None:
        if next(calls) == 2:
            next(value for value in self.trained().values() if value.grad is not None).grad.view(-1)[0] = torch.inf
        check(self, optimizer)

    def spoil_scores(scores: torch.Tensor) -> torch.Tensor:
        return score(scores * (torch.nan if next(calls) == 7 else 1))  # in the third validation

    if where == "gradient":
        monkeypatch.setattr(Recommender, "on_before_optimizer_step", spoil)
    else:
        monkeypatch.setattr(Recommender, "check_scores", staticmethod(spoil_scores))
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    words = ["-c", model, "-c", ROOT / "configs/data/ml_100k.yaml", "--out", out, *FAST, *QUIET]
    code, err = run("fit", *words, "--trainer.max_steps=5", model=model)
    assert code == 1
    assert expected in err
    assert "Traceback" not in err
    made = record(out)
    assert made["status"] == "failed"
    assert "metrics" not in made
    assert read_checkpoint(out / "checkpoints" / "best.ckpt")["global_step"] <= 2
    assert read_checkpoint(checkpoints_in(out / "resume")[0])["global_step"] <= 2


def test_early_stopping_stops(run: Run, tmp_path: Path) -> None:
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    words = [
        "-c",
        model,
        "-c",
        ROOT / "configs/data/ml_100k.yaml",
        "-c",
        ROOT / "configs/callbacks/early_stopping.yaml",
    ]
    frozen = ["--model.optimizer=SGD", "--model.optimizer.lr=1e-12", "--trainer.max_steps=50"]
    code, err = run("fit", *words, "--out", out, *FAST, *frozen, *QUIET, model=model)
    assert code == 0, err
    assert record(out)["costs"]["train_steps"] < 10  # of the 50 allowed


@pytest.mark.parametrize("optimizer", ["SGD", "Adafactor", "RMSprop"])
def test_any_torch_optimizer_by_config(run: Run, tmp_path: Path, optimizer: str) -> None:
    model, out = ROOT / "configs/model/lora.yaml", tmp_path / "run"
    words = ["-c", model, "-c", ROOT / "configs/data/ml_100k.yaml", "--out", out, *FAST, *QUIET]
    options = [
        f"--model.optimizer=torch.optim.{optimizer}",
        "--model.optimizer.lr=0.01",
        "--model.schedule=cosine",
        "--model.warmup=0.5",
    ]
    code, err = run("fit", *words, *options, model=model)
    assert code == 0, err


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_the_short_help_names_options_that_the_long_one_has(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 30
    with pytest.raises(SystemExit) as end:
        main([command, "--help=all"])
    assert end.value.code == 0
    long = capsys.readouterr().out
    for option in re.findall(r"--[\w.-]+\w", short.split("--help=all")[0]):
        if not option.startswith(("--model.", "--data.")) and "KEY" not in option:  # the help of classes has theirs
            assert option in long, option
    assert len(long.splitlines()) > 200


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.help", "LoRATuning"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("rank of the update", "learning rate", "packaged name"):
        assert word in text
