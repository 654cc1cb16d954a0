"""The progress file is whole JSON with a time left, and lines are printed now and then."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.progress_log import ProgressLog


def test_progress_of_a_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("callbacks.progress_log.time.monotonic", lambda: float(next(clock)))
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path), num_test_batches=[5])
    log = ProgressLog(every=2, print_every=15)
    found = []
    for batch in range(5):
        log.on_test_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        found.append(json.loads((tmp_path / "progress.json").read_text()))
    assert [state["done"] for state in found] == [1, 2, 3, 4, 5]
    assert found[0]["seconds_left"] is None  # one batch has no duration yet
    assert [state["seconds_left"] for state in found[1:]] == [30, 20, 10, 0]
    assert found[2] == {"phase": "test", "done": 3, "total": 5, "message": "", "seconds_left": 20}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "test 5/5 · 0 s left"
    assert len(lines) < 5
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
