"""The report's page in a real browser: what a reader clicks and types, and that hostile text stays text."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.analysis.leaderboard import build_tables
from benchmarks.analysis.pairs import compare_rows
from benchmarks.analysis.runs import read_suite
from benchmarks.metric_names import fraction
from benchmarks.report.write import write_report
from tests.benchmarks.report.chromium import Page, find_browser
from tests.benchmarks.report.grids import HOSTILE, Grid

ATTACK = "<img src=x onerror='window.attacked = 1'>"
NAMES = "[...document.querySelector('table.board').tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent)"
HEAD = "[...document.querySelector('table.board').tHead.rows[0].cells].find(cell => cell.textContent === {!r}).firstElementChild"
RUN = "[...document.querySelectorAll('details[data-filter]')].find(run => run.firstElementChild.textContent.includes({!r}))"


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium; .ci/run installs one, so that only a laptop without any skips these tests."""
    found = find_browser()
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("install Chromium to try the report's page")
    return found


@pytest.fixture(scope="module")
def opened(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a grid of four rows, opened once."""
    grid = Grid(tmp_path_factory.mktemp("grid"))
    (grid.directory / "suite.yaml").write_text("name: tiny\n")
    (grid.directory / "runs").mkdir()
    grid.add("lora", 1, 3, curves=True, edit=lambda r: r["samples"][0].update(prompt=f"{HOSTILE} {ATTACK}"))
    grid.add("prefix", 1, 6, parameters=92_160, curves=True)
    grid.add("zero_shot", 1, 12, kind="untuned")
    grid.add(f"item {ATTACK}", 1, 8, kind="reference", backbone=None, learning_rate=None)
    grid.add("full", cell="full-1", edit=lambda r: r.update(status="failed", error=f"{ATTACK} {HOSTILE}"))
    page = write_report(grid.directory).html
    with Page(browser, tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


def test_opening_asks_nothing_of_a_network_and_runs_no_title(opened: Page) -> None:
    assert opened.value("document.title") == "tiny – results"
    assert opened.value("window.attacked") is None
    assert opened.errors == []
    outside = [address for address in opened.requests if not address.startswith(("file:", "data:", "about:"))]
    assert outside == []
    assert opened.value(
        "[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().width > 300)"
    ) == [
        True,
        True,
    ]
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
    assert opened.value(shown).count("svg") == 2  # its validation metric and its training loss
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


@pytest.fixture(scope="module")
def real(browser: str, finished_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of real runs of real, tiny models."""
    page = write_report(finished_grid).html
    with Page(browser, tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


SEEN = "part.checkVisibility() && getComputedStyle(part).display !== 'none'"  # the first is always true within an SVG
VISIBLE = "[...document.querySelectorAll({!r})].filter(part => " + SEEN + ").length"
PAIR = "[...document.querySelectorAll('.pairs button')].find(pair => pair.ariaLabel.startsWith({!r}))"
INK = "[...document.querySelectorAll('figure text')].map(text => getComputedStyle(text).fill)"


def test_the_page_begins_with_what_was_found(real: Page, finished_grid: Path) -> None:
    sentence = real.value("document.querySelector('h1 + p').textContent")
    markdown = (finished_grid / "leaderboard.md").read_text()
    assert sentence.lower() in markdown.split("\n\n")[1].replace("\\", "").lower()
    order = "[...document.querySelectorAll('table.main, figure, .protocol')].map(part => part.tagName)"
    assert real.value(order) == ["TABLE", "FIGURE", "FIGURE", "DETAILS"]
    assert real.value("document.querySelector('.protocol').open") is False
    assert real.errors == []


def test_a_pair_opens_to_its_difference_and_what_was_set_differently(real: Page, finished_grid: Path) -> None:
    (table,) = build_tables(read_suite(finished_grid))[0]
    places = {row.name: place for place, row in enumerate(table.rows)}
    pair = compare_rows(table)[places["lora"], places["adapter"]]
    real.click(PAIR.format("lora against adapter"))
    told = real.value("document.querySelector('.pair').innerText")
    assert told.startswith(f"lora against adapter: {pair.outcome}. HR@5 {fraction(pair.difference, signed=True)} [")
    assert "by Holm over 6 tests, 24 users." in told
    rows = real.value(
        "[...document.querySelectorAll('.pair tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    settings = {row[0]: row[1:] for row in rows[1:]}
    assert settings["model.class_path"] == ["recmodels.LoRATuning", "recmodels.AdapterTuning"]
    assert settings["model.alpha"] == ["16", "–"]
    assert not {key for key in settings if key.split(".")[0] in ("out", "data", "seed_everything")}
    assert real.value(VISIBLE.format(".pairs button[aria-pressed=true]")) == 1


def test_figures_and_matrix_follow_the_filters(real: Page) -> None:
    marks, cells = "figure g[data-rows]:not([data-rows=''])", ".pairs button"
    everything = real.value(VISIBLE.format(marks)), real.value(VISIBLE.format(cells))
    assert everything[1] == 12
    real.click("document.getElementById('filter')")
    real.type("lora")
    (key,) = real.value(
        "[...document.querySelectorAll('tr[data-key]')].filter(row => !row.hidden).map(row => row.dataset.key)"
    )
    left = f"[...document.querySelectorAll({marks!r})].filter(part => {SEEN}).map(part => part.dataset.rows)"
    assert set(real.value(left)) == {key}
    assert 0 < real.value(VISIBLE.format(marks)) < everything[0]
    assert real.value(VISIBLE.format(cells)) == 0  # a row alone has no pair
    assert real.value(VISIBLE.format("figure g[data-rows='']")) == 0  # a front of what is hidden
    real.value("document.getElementById('filter').select()")
    real.type("tuned")  # lora, adapter, and what is untuned
    assert real.value(VISIBLE.format(cells)) == 6
    real.value("(document.getElementById('filter').value = '', filter())")
    assert (real.value(VISIBLE.format(marks)), real.value(VISIBLE.format(cells))) == everything


def test_figures_say_in_words_what_they_show(real: Page, finished_grid: Path) -> None:
    told = real.value("[...document.querySelectorAll('figure [role=img]')].map(figure => figure.ariaLabel)")
    assert [text.split(";")[0].split(" against")[0] for text in told] == ["HR@5", "Learning curves"]
    (table,) = build_tables(read_suite(finished_grid))[0]
    for row in table.rows:
        assert f"{row.name} {row.metrics['hr@5']:.3f}".replace("0.", ".") in told[0]
    lora = next(row.runs[0] for row in table.rows if row.name == "lora")
    assert f"train/loss {lora.curves['train/loss'][0][1]:.3g} at step 0" in told[1]


def test_a_run_shows_its_folder_its_command_and_how_it_differs(real: Page) -> None:
    run = RUN.format("adapter")
    real.click("[...document.querySelectorAll('table.main a')].find(link => link.textContent === 'adapter')")
    assert real.value(f"({run}).open") is True
    assert real.value(f"({run}).querySelector('.links a').getAttribute('href')").startswith("runs/adapter-1-")
    assert "instructrec fit" in real.value(f"({run}).innerText")
    assert "configs/model/adapter.yaml" in real.value(f"({run}).querySelector('pre').textContent")
    select = f"({run}).querySelector('.against')"
    assert real.value(f"({select}).length") == 4
    change = "(select => (select.selectedIndex = 1, select.dispatchEvent(new Event('change'))))"
    real.value(f"{change}({select})")
    assert "model.class_path" in real.value(f"({run}).querySelector('.differences').innerText")


def test_users_on_whom_methods_disagree(real: Page) -> None:
    first = "[...document.querySelectorAll('summary')].find(part => part.textContent.startsWith('User '))"
    real.click(first)
    rows = f"[...({first}).parentElement.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    answers = real.value(rows)
    assert {row[0] for row in answers} == {"lora", "adapter", "zero_shot", "popularity"}
    assert len({row[1] for row in answers}) > 1 or len({row[2].split(";")[0] for row in answers}) > 1


def test_tables_can_be_downloaded(real: Page, finished_grid: Path, tmp_path: Path) -> None:
    real.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for name in ("leaderboard.csv", "leaderboard.tex"):
        real.click(f"[...document.querySelectorAll('a[download]')].find(link => link.download === '{name}')")
        until = time.monotonic() + 30
        while not (tmp_path / name).is_file() and time.monotonic() < until:
            real.value("0")
            time.sleep(0.05)
        assert (tmp_path / name).read_text() == (finished_grid / name).read_text()
    with (tmp_path / "leaderboard.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"lora", "adapter", "zero_shot", "popularity"}
    assert real.errors == []


def brightness(color: str) -> float:
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 765


def test_figures_are_readable_in_the_dark(real: Page) -> None:
    assert {brightness(color) < 0.3 for color in real.value(INK)} == {True}
    real.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert brightness(real.value("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert {brightness(color) > 0.7 for color in real.value(INK)} == {True}
    strokes = "[...document.querySelectorAll('figure [style*=stroke]')].map(part => getComputedStyle(part).stroke)"
    assert "rgb(0, 0, 0)" not in real.value(strokes)
    grounds = "[...document.querySelectorAll('figure path')].map(part => getComputedStyle(part).fill)"
    assert "rgb(255, 255, 255)" not in real.value(grounds)
    real.call("Emulation.setEmulatedMedia", features=[])
