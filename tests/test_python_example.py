"""The lines that tune and test without the command line, in the page and in the notebook, run as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "benchmarks" / "cli" / "README.md"
NOTEBOOK = ROOT / "benchmarks" / "notebooks" / "quickstart.ipynb"


def page_code() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(code)


def notebook_cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("mini_data")
@pytest.mark.parametrize("where", ["page", "notebook"])
def test_the_lines_run(where: str, tiny_causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny backbone, two steps and few candidates in place of the real ones."""
    monkeypatch.chdir(tmp_path)
    cells = [page_code()] if where == "page" else notebook_cells()
    names: dict[str, Any] = {}
    for cell in cells:
        small = cell.replace("smollm2-135m-instruct", str(tiny_causal)).replace("max_steps=40", "max_steps=2")
        exec(compile(small, where, "exec"), names)
    assert names["trainer"].global_step == 2
    assert 0 <= names["metrics"]["test/hr@5"] <= 1


def test_the_notebook_holds_the_lines_of_the_page() -> None:
    written = "\n".join(notebook_cells())
    for line in filter(None, page_code().splitlines()):
        assert line in written
