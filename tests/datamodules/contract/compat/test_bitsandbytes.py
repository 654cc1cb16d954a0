"""Runs that hold nothing in four bits do not hear of bitsandbytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STAND_IN = """
import logging
logging.getLogger("bitsandbytes.cextension").warning("no binary for this machine")
"""


def stderr_of(code: str, folder: Path) -> str:
    """What a fresh process says on stderr, with a bitsandbytes that warns as soon as PEFT imports it."""
    (folder / "bitsandbytes.py").write_text(STAND_IN)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[4])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return done.stderr


def test_its_warnings_are_heard_in_four_bits_alone(tmp_path: Path) -> None:
    quiet = "from datamodules.contract.compat.bitsandbytes import allow_warnings\n"
    assert "no binary" in stderr_of("import bitsandbytes", tmp_path)
    assert stderr_of(quiet + "import bitsandbytes", tmp_path) == ""
    assert "no binary" in stderr_of(quiet + "allow_warnings()\nimport bitsandbytes", tmp_path)


def test_recommenders_silence_it_before_they_import_peft() -> None:
    code = "import logging, recmodels; logging.getLogger('bitsandbytes.backends').warning('no kernels')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no kernels" not in done.stderr
    text = (Path(__file__).parents[4] / "recmodels" / "__init__.py").read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if line.startswith(("import", "from")))
    assert first.startswith("import datamodules.contract.compat.bitsandbytes")
