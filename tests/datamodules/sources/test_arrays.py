"""A cache that cannot lie: what is torn, flipped, foreign or half-written is made again, by any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datamodules.sources.arrays import Arrays, DamagedError, cached_arrays, open_arrays

ROOT = Path(__file__).resolve().parents[3]
KEY = {"tokenizer": "a", "titles": "b"}
# The cache alone, without the packages around it, so that many processes start quickly.
ALONE = f"""
import sys, types
package = types.ModuleType("datamodules")
package.__path__ = [{str(ROOT / "datamodules")!r}]
sys.modules["datamodules"] = package
import numpy as np
from datamodules.sources.arrays import cached_arrays
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes the same arrays each time, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"ids": np.arange(1000, dtype=np.uint32), "start": np.arange(12).reshape(3, 4)}


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(max_size=4),
        hnp.arrays(
            st.sampled_from([np.uint32, np.int64, np.uint8, np.float32]),
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0),
        ),
        max_size=3,
    ),
    key=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
)
def test_arrays_come_back_as_they_went(tmp_path: Path, arrays: Arrays, key: dict[str, str]) -> None:
    made = cached_arrays(str(len(list(tmp_path.rglob("*")))), key, lambda: arrays)
    assert made.path is not None
    back = open_arrays(made.path, key).arrays
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable


def test_arrays_are_made_once_and_mapped_from_then_on(cache: Path) -> None:
    make = Maker()
    first, again = cached_arrays("tokens", KEY, make), cached_arrays("tokens", KEY, make)
    assert make.calls == 1
    assert equal(first.arrays, again.arrays)
    assert files(cache) == [first.path]
    if sys.platform == "linux":
        assert str(first.path) in Path("/proc/self/maps").read_text()


def test_another_key_is_another_entry(cache: Path) -> None:
    make = Maker()
    cached_arrays("tokens", KEY, make)
    for other in (KEY | {"titles": "c"}, {"tokenizer": "a"}, {"titles": "a", "tokenizer": "b"}):
        cached_arrays("tokens", other, make)
    assert make.calls == 4
    assert len(files(cache)) == 4


def damage_every_kind() -> dict[str, Callable[[bytes], bytes]]:
    def flipped(place: int) -> Callable[[bytes], bytes]:
        return lambda raw: raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]

    return {
        "empty": lambda raw: b"",
        "half": lambda raw: raw[: len(raw) // 2],
        "head only": lambda raw: raw[:20],
        "one byte short": lambda raw: raw[:-1],
        "one byte long": lambda raw: raw + b"\0",
        "zeros": lambda raw: bytes(len(raw)),
        "text": lambda raw: b"hello " * 100,
    } | {f"bit {place}": flipped(place) for place in (0, 8, 39, 41, 60, 300, 600, -1)}


DAMAGE = damage_every_kind()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_again_with_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = Maker()
    made = cached_arrays("tokens", KEY, make)
    assert made.path is not None
    made.path.write_bytes(DAMAGE[kind](made.path.read_bytes()))

    with pytest.raises((DamagedError, ValueError)):
        open_arrays(made.path, KEY)
    again = cached_arrays("tokens", KEY, make)

    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"instructrec: {made.path} cannot be used (")
    assert said[0].endswith("); making it again")
    assert make.calls == 2
    assert equal(again.arrays, make())
    assert equal(open_arrays(made.path, KEY).arrays, make())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path: Path, place: int, bit: int) -> None:
    made = cached_arrays("flips", KEY, Maker())
    assert made.path is not None
    raw = bytearray(made.path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    other = tmp_path / "flipped.arrays"
    other.write_bytes(raw)

    with pytest.raises(DamagedError):
        open_arrays(other, KEY)


def test_a_file_of_another_key_under_this_name_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = (
        cached_arrays("tokens", KEY, Maker()),
        cached_arrays("tokens", {"x": "y"}, lambda: {"n": np.arange(3)}),
    )
    assert mine.path is not None
    assert other.path is not None
    mine.path.write_bytes(other.path.read_bytes())

    assert equal(cached_arrays("tokens", KEY, Maker()).arrays, Maker()())
    assert "it belongs to another key" in capsys.readouterr().err


# --- folders that cannot be written ---------------------------------------------------------------------------------


def refuse(error: OSError) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize("step", ["mkdir", "fsync", "replace"])
def test_a_full_or_read_only_disk_costs_the_cache_alone(
    cache: Path, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = refuse(
        OSError(28, "No space left on device") if step != "mkdir" else PermissionError(13, "Permission denied")
    )
    monkeypatch.setattr(*((Path, "mkdir") if step == "mkdir" else (os, step)), broken)

    made = cached_arrays("tokens", KEY, Maker())

    assert equal(made.arrays, Maker()())
    assert made.path is None
    [line] = capsys.readouterr().err.splitlines()
    reason = "Permission denied" if step == "mkdir" else "No space left on device"
    assert f"cannot be kept ({reason}); going on without it" in line
    assert files(cache) == []  # no partial file is left


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_costs_the_cache_alone(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "tokens").mkdir(parents=True)
    (cache / "tokens").chmod(0o500)
    try:
        assert equal(cached_arrays("tokens", KEY, Maker()).arrays, Maker()())
    finally:
        (cache / "tokens").chmod(0o700)
    assert "cannot be kept (Permission denied)" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_costs_the_cache_alone(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("in the way")
    assert equal(cached_arrays("tokens", KEY, Maker()).arrays, Maker()())
    assert "going on without it" in capsys.readouterr().err


def test_an_unwritten_file_that_is_damaged_does_not_come_back(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cached_arrays("tokens", KEY, Maker())
    assert made.path is not None
    made.path.write_bytes(b"torn")
    monkeypatch.setattr(os, "replace", refuse(OSError(30, "Read-only file system")))

    assert equal(cached_arrays("tokens", KEY, Maker()).arrays, Maker()())


# --- many processes -------------------------------------------------------------------------------------------------

PREPARE = ALONE + textwrap.dedent(
    """
    import fcntl, hashlib, time
    fcntl.flock = fcntl.lockf = lambda *a: None  # as on file systems where locks do nothing
    def make():
        time.sleep(0.2)
        return {"ids": np.random.default_rng(0).integers(0, 50_000, 200_000).astype(np.uint32)}
    made = cached_arrays("tokens", {"k": "v"}, make)
    print(made.path is not None, hashlib.sha256(made.arrays["ids"].tobytes()).hexdigest())
    """
)


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_that_prepare_one_cold_cache_agree(cache: Path, processes: int) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PREPARE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    answers = [process.communicate(timeout=120) for process in started]

    assert [process.returncode for process in started] == [0] * processes
    expected = np.random.default_rng(0).integers(0, 50_000, 200_000).astype(np.uint32)
    assert len({out for out, _ in answers}) == 1
    assert answers[0][0].startswith("True ")
    assert [err for _, err in answers] == [""] * processes
    [only] = files(cache)  # one entry, no partial file
    assert np.array_equal(open_arrays(only, {"k": "v"}).arrays["ids"], expected)


WRITE = ALONE + textwrap.dedent(
    """
    import os
    print("ready", flush=True)
    os.fsync = lambda fd: sys.stdin.readline()  # the moment before a file is whole and has its name
    cached_arrays("tokens", {"k": "v"}, lambda: {"ids": np.arange(100_000)})
    """
)


def test_a_process_killed_while_writing_leaves_nothing_under_the_final_name(cache: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + 60
        while not files(cache) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    [left] = files(cache)
    assert left.suffix == ".tmp"

    made = cached_arrays("tokens", {"k": "v"}, lambda: {"ids": np.arange(100_000)})

    assert np.array_equal(made.arrays["ids"], np.arange(100_000))
    assert files(cache) == [made.path]  # what the dead process left is gone


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_whole_entry_or_none(cache: Path) -> None:
    code = ALONE + textwrap.dedent(
        """
        print("ready", flush=True)
        for number in range(10_000):
            cached_arrays("tokens", {"k": str(number % 5)}, lambda: {"ids": np.full(300_000, number % 5)}).path.unlink()
        """
    )
    rng = np.random.default_rng(0)
    for _ in range(100):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0.0, 0.05)))
            process.kill()
        for path in files(cache):
            if path.suffix == ".arrays":
                assert any(opens(path, {"k": str(number)}) for number in range(5))


def opens(path: Path, key: dict[str, str]) -> bool:
    try:
        return bool((open_arrays(path, key).arrays["ids"] == int(key["k"])).all())
    except DamagedError as error:
        assert str(error) == "it belongs to another key"
        return False


# --- worker processes -----------------------------------------------------------------------------------------------


def total(file: Any) -> int:
    return int(file.arrays["ids"].sum())


@pytest.mark.parametrize("kept", [True, False])
def test_pickling_carries_the_name_and_not_the_arrays(
    kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not kept:
        monkeypatch.setattr(os, "replace", refuse(OSError(28, "No space left on device")))
    made = cached_arrays("tokens", KEY, lambda: {"ids": np.arange(500_000)})

    raw = pickle.dumps(made)

    assert (len(raw) < 2000) == kept
    assert equal(pickle.loads(raw).arrays, made.arrays)


def test_a_spawned_process_maps_the_same_file() -> None:
    made = cached_arrays("tokens", KEY, lambda: {"ids": np.arange(1000)})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(total, (made,)) == 499_500
