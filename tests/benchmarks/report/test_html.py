"""The report's page in a real browser: what a reader clicks and types, and that hostile text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.report.write import write_report
from tests.benchmarks.report.chromium import Page, find_browser
from tests.benchmarks.report.grids import HOSTILE, Grid

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
ATTACK = "<img src=x onerror='window.attacked = 1'>"
NAMES = "[...document.querySelector('table.board').tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent)"
HEAD = "[...document.querySelector('table.board').tHead.rows[0].cells].find(cell => cell.textContent === {!r}).firstElementChild"
RUN = "[...document.querySelectorAll('details[data-filter]')].find(run => run.textContent.includes({!r}))"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a grid of four rows, opened once."""
    grid = Grid(tmp_path_factory.mktemp("grid"))
    (grid.directory / "suite.yaml").write_text("name: tiny\n")
    (grid.directory / "runs").mkdir()
    grid.add("lora", 1, 3, edit=lambda r: r["samples"][0].update(prompt=f"{HOSTILE} {ATTACK}"))
    grid.add("prefix", 1, 6, parameters=92_160)
    grid.add("zero_shot", 1, 12, kind="untuned")
    grid.add(f"item {ATTACK}", 1, 8, kind="reference", backbone=None, learning_rate=None)
    grid.add("full", cell="full-1", edit=lambda r: r.update(status="failed", error=f"{ATTACK} {HOSTILE}"))
    page = write_report(grid.directory).html
    with Page(str(BROWSER), tmp_path_factory.mktemp("profile")) as browser:
        browser.open(page)
        yield browser


def test_opening_asks_nothing_of_a_network_and_runs_no_title(opened: Page) -> None:
    assert opened.value("document.title") == "tiny – results"
    assert opened.value("window.attacked") is None
    assert opened.errors == []
    outside = [address for address in opened.requests if not address.startswith(("file:", "data:", "about:"))]
    assert outside == []
    assert opened.value("[...document.images].every(image => image.naturalWidth > 300)") is True
    # Nothing is wider than the window but what scrolls by itself.
    assert opened.value("document.documentElement.scrollWidth <= innerWidth") is True


def test_a_click_on_a_heading_sorts_and_another_turns_round(opened: Page) -> None:
    best_first = opened.value(NAMES)
    assert best_first[0] == "lora"
    opened.click(HEAD.format("trainable"))
    assert opened.value(NAMES)[:2] == ["lora", "prefix"]
    opened.click(HEAD.format("trainable"))
    assert opened.value(NAMES)[:2] == ["prefix", "lora"]  # rows without the number stay last
    opened.click(HEAD.format("method"))
    assert opened.value(NAMES) == sorted(best_first)
    opened.click(HEAD.format("HR@5 [95 %]"))
    assert opened.value(NAMES) == best_first


def test_filters_hide_rows_and_runs(opened: Page) -> None:
    everything = opened.value(NAMES)
    opened.click("document.getElementById('filter')")
    opened.type("PREF")
    assert opened.value(NAMES) == ["prefix"]
    assert opened.value("document.getElementById('shown').textContent") == "1 of 4 runs"
    opened.value("document.getElementById('filter').select()")
    opened.type(" ")
    assert opened.value(NAMES) == everything
    opened.value("document.querySelector('select[data-choice=kind]').focus()")
    opened.press("ArrowDown")  # from "all" to the first: reference
    assert opened.value(NAMES) == [f"item {ATTACK}"]
    opened.press("ArrowDown")
    assert sorted(opened.value(NAMES)) == ["lora", "prefix"]
    opened.value("(document.querySelector('select[data-choice=kind]').value = '', filter())")
    assert opened.value(NAMES) == everything


def test_a_run_opens_to_its_config_curves_and_sample_prompts(opened: Page) -> None:
    run = RUN.format("lora")
    shown = f"[...({run}).querySelectorAll('*')].filter(part => part.checkVisibility()).map(part => part.tagName)"
    assert "svg" not in opened.value(shown)
    opened.click(f"({run}).firstElementChild")
    assert opened.value(f"({run}).open") is True
    assert opened.value(shown).count("svg") == 2
    assert opened.value(f"({run}).querySelector('svg polyline').getBoundingClientRect().width") > 100
    for title, text in (("Resolved configuration", "max_steps: 100"), ("Sample prompts", HOSTILE)):
        inner = f"[...({run}).querySelectorAll('details')].find(part => part.textContent.startsWith('{title}'))"
        assert text not in opened.value(f"({run}).innerText")
        opened.click(f"({inner}).firstElementChild")
        assert text in opened.value(f"({inner}).innerText")
    assert ATTACK in opened.value(f"({run}).innerText")
    assert opened.value("window.attacked") is None
    assert opened.errors == []


def test_the_page_fits_a_telephone(opened: Page, tmp_path: Path) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert opened.value("document.documentElement.scrollWidth <= innerWidth") is True
