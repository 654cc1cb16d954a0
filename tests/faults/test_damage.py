"""Checkpoints that are damaged or foreign are refused in one line; a whole one is never lost."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from callbacks.resume import checkpoints_in
from datamodules.contract.checkpoints import (
    check_file,
    link_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from datamodules.contract.errors import CheckpointError
from datamodules.contract.files import manifest_of, sha256_of
from tests.faults import tally
from tests.faults.injected import content
from tests.faults.trials import Runs, differences


def flips(size: int, count: int) -> list[int]:
    """Bits to flip: the first and the last, and others by chance."""
    return [0, 8 * size - 1, *random.Random(0).sample(range(8 * size), count - 2)]


def refused(path: Path, name: str) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        text = str(error)
        return name in text and "expected" in text and "found" in text and "\n" not in text
    return False


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(0), path)
    whole, manifest = path.read_bytes(), manifest_of(path).read_bytes()
    survived = 0
    for bit in flips(len(whole), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        survived += refused(path, "a.ckpt")
    tally.add("a bit of a checkpoint flipped", 100, survived)
    assert survived == 100
    path.write_bytes(whole)
    survived = 0
    for bit in flips(len(manifest), 100):
        damaged = bytearray(manifest)
        damaged[bit // 8] ^= 1 << bit % 8
        manifest_of(path).write_bytes(damaged)
        survived += refused(path, "a.ckpt")
    tally.add("a bit of a manifest flipped", 100, survived)
    assert survived == 100
    manifest_of(path).write_bytes(manifest)
    cuts = [0, 1, len(whole) - 1, *random.Random(1).sample(range(2, len(whole) - 1), 47)]
    survived = 0
    for size in cuts:
        path.write_bytes(whole[:size])
        survived += refused(path, "a.ckpt")
    tally.add("a checkpoint truncated or empty", len(cuts), survived)
    assert survived == len(cuts)
    path.write_bytes(whole)
    assert read_checkpoint(path)["epoch"] == 1


def test_a_checkpoint_without_manifest_is_held_against_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(content(0), path)  # as version 0.1.0 wrote them
    assert check_file(path) is False
    assert read_checkpoint(path)["epoch"] == 1
    whole = path.read_bytes()
    weights = content(0)["state_dict"]["w"].numpy().tobytes()
    place = whole.index(weights)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CheckpointError, match=r"old.ckpt is damaged: expected the archive's own check sum, found"):
        read_checkpoint(path)
    for size in (0, 1, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refused(path, "old.ckpt")


def test_replacing_a_file_of_the_earlier_version_keeps_it_readable_until_the_end(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(0), path)
    plan = {"path": str(path), "seed": 1, "call": "replace", "number": 1}
    assert runs.warm.save(tmp_path / "log", **plan)  # the manifest is there, the checkpoint is not yet
    assert manifest_of(path).is_file()
    assert read_checkpoint(path)["state_dict"]["w"].equal(content(0)["state_dict"]["w"])


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(1), path)
    with pytest.raises(CheckpointError, match=r"a.ckpt cannot be read as a checkpoint"):
        write_checkpoint(content(2) | {"callbacks": {"x": Path("an object")}}, path)
    assert read_checkpoint(path)["state_dict"]["w"].equal(content(1)["state_dict"]["w"])
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.ckpt", "a.ckpt.sha256"]


def test_a_full_disk_says_so_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(1), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # as with a full disk, a write fails midway
    try:
        with pytest.raises(OSError, match=r"File too large: .*a\.ckpt"):
            write_checkpoint({"state_dict": {"w": torch.randn(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_checkpoint(path)["state_dict"]["w"].equal(content(1)["state_dict"]["w"])
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.ckpt", "a.ckpt.sha256"]


def test_a_second_name_outlives_the_first(tmp_path: Path) -> None:
    best, kept = tmp_path / "best.ckpt", tmp_path / "step-00000001.best"
    write_checkpoint(content(1), best)
    link_checkpoint(best, kept)
    write_checkpoint(content(2), best)
    assert read_checkpoint(kept)["state_dict"]["w"].equal(content(1)["state_dict"]["w"])
    link_checkpoint(kept, best)
    assert read_checkpoint(best)["state_dict"]["w"].equal(content(1)["state_dict"]["w"])
    remove_checkpoint(kept)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "best.ckpt.sha256"]


def test_the_manifest_is_what_sha256sum_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(0), path)
    assert manifest_of(path).read_text() == f"{sha256_of(path)}  a.ckpt\n"


def kills_during_saving(runs: Runs, folder: Path, attempts: int) -> tuple[int, int]:
    """Kills, and how often the file was then the new content or the one before it."""
    path, log = folder / "a.ckpt", folder / "log"
    write_checkpoint(content(0), path)
    rng, kills, survived, seen, seed = random.Random(0), 0, 0, 0, 0
    while kills < attempts:
        seed += 1
        # Each write syncs and renames the draft, its folder, and the manifest before and after it.
        plan = [
            {"call": "fsync", "number": rng.randrange(6)},
            {"call": "replace", "number": rng.randrange(3)},
            {"delay": rng.uniform(0.0001, 0.02)},
        ][seed % 3]
        killed = runs.warm.save(log, path=str(path), seed=seed, **plan)
        found = read_checkpoint(path)["state_dict"]["w"]
        whole = [one for one in {seen, seed} if found.equal(content(one)["state_dict"]["w"])]
        kills += killed
        survived += killed and whole != []
        assert killed or whole == [seed]
        seen = whole[0] if whole else seen
    return kills, survived


def test_ten_kills_during_saving_lose_nothing(runs: Runs, tmp_path: Path) -> None:
    assert kills_during_saving(runs, tmp_path, 10) == (10, 10)


@pytest.mark.faults
def test_a_hundred_kills_during_saving_lose_nothing(runs: Runs, tmp_path: Path) -> None:
    kills, survived = kills_during_saving(runs, tmp_path, 100)
    tally.add("kill -9 while a checkpoint is written over the one before", kills, survived)
    assert kills == survived == 100


def lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("instructrec:")]


def test_damage_is_met_at_every_command(runs: Runs, tmp_path: Path) -> None:
    """The newest checkpoint damaged: the one before it is used, and the run is still the same; all damaged: refused."""
    whole = runs.uninterrupted("adapter", tmp_path)
    out, log = tmp_path / "run", tmp_path / "log"
    command = [*runs.command("adapter", out), "--ckpt_path=last"]
    assert runs.warm.run(log, command, point="batch_end", step=13) == -signal.SIGKILL
    newest, before = checkpoints_in(out / "resume")
    flip(newest)
    spoiled = tmp_path / "spoiled"
    shutil.copytree(out, spoiled)
    flip(spoiled / "resume" / before.name)
    log.unlink()
    assert runs.warm.run(log, command) == 0, log.read_text()
    assert f"{newest} is damaged: expected sha256" in lines(log)[0]
    assert lines(log)[0].endswith("the checkpoint before it is used")
    assert not differences(out, whole)
    log.unlink()
    code = runs.warm.run(log, [*runs.command("adapter", spoiled), "--ckpt_path=last"])
    assert code == 2
    assert "no checkpoint in" in lines(log)[-1]
    assert "Traceback" not in log.read_text()
    # The run's own best checkpoint, whole for another method and damaged for its own.
    best = out / "checkpoints" / "best.ckpt"
    lora = runs.command("lora", tmp_path / "again", f"--ckpt_path={best}")
    assert refusal(runs, log, ["test", *lora[1:]], best) == (
        "the checkpoint is of AdapterTuning, not LoRATuning: use its run's own config.yaml"
    )
    flip(best)
    users = tmp_path / "users.jsonl"
    users.write_text(json.dumps({"history": ["1", "2"]}) + "\n")
    for words in (["test"], ["validate"], ["predict", f"--data.predict_file={users}"]):
        base = ["-c", str(whole / "config.yaml"), "--out", str(tmp_path / "again"), f"--ckpt_path={best}"]
        assert "is damaged: expected sha256" in refusal(runs, log, [words[0], *base, *words[1:]], best)


def refusal(runs: Runs, log: Path, command: list[str], file: Path) -> str:
    """What a command says of a file that it refuses."""
    log.unlink(missing_ok=True)
    assert runs.warm.run(log, command) == 2, log.read_text()
    assert "Traceback" not in log.read_text()
    assert len(lines(log)) == 1
    assert str(file) in lines(log)[0]
    return lines(log)[0].split(f"{file}: ", 1)[-1]


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.unlink()  # another name of the same content stays whole
    path.write_bytes(damaged)


REFUSALS = [
    (["--data.batch_size=2"], "data.init_args.batch_size was 4, is 2"),
    (["--model.bottleneck=8"], "model.init_args.bottleneck was 4, is 8"),
    (["--trainer.max_steps=40"], "trainer.max_steps was 20, is 40"),
    (["--trainer.devices=2"], "trainer.devices was 1, is 2"),
    (["--trainer.precision=bf16-mixed"], "trainer.precision was 32-true, is bf16-mixed"),
    (["--seed_everything=2"], "seed_everything was 1, is 2"),
]


def test_a_changed_run_is_not_continued(runs: Runs, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    command = [*runs.command("adapter", out), "--ckpt_path=last"]
    assert runs.warm.run(log, command, point="batch_end", step=7) == -signal.SIGKILL
    for options, expected in REFUSALS:
        log.unlink(missing_ok=True)
        assert runs.warm.run(log, [*command, *options]) == 2, log.read_text()
        assert len(lines(log)) == 1, log.read_text()
        assert expected in lines(log)[0]
    # Other data under the same settings.
    data = tmp_path / "data"
    shutil.copytree(runs.data, data)
    inter = data / "ml-100k" / "ml-100k.inter"
    text = inter.read_text().splitlines()
    inter.write_text("\n".join(text[:-1]) + "\n")
    log.unlink()
    assert runs.warm.run(log, command, patches={"INSTRUCTREC_DATA": str(data)}) == 2, log.read_text()
    assert "the checkpoint's run has data fingerprint" in lines(log)[0]
    log.unlink()
    weights = out / "checkpoints" / "best.ckpt"
    code = runs.warm.run(log, [*runs.command("adapter", tmp_path / "b"), f"--ckpt_path={weights}"])
    assert code == 2
    assert "expected a checkpoint of a run's resume/ folder, found weights only" in lines(log)[0]
    # What changes no number may change.
    log.unlink()
    assert runs.warm.run(log, [*command, "--data.num_workers=1", "--resume.every_n_steps=4"]) == 0, log.read_text()
