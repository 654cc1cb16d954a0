"""Tables of papers as data: what was published, how certain that is, and which cells of a grid stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.metric_names import DEFINITIONS, metric_base
from benchmarks.paths import PUBLISHED, located
from benchmarks.plain_yaml import nearest_hint, read_yaml
from datamodules.contract.errors import InputError

CARDS = PUBLISHED
"""The folder of the cards; a card's name is its file's stem."""

Certainty = Literal["paper", "repo", "issue", "third-party", "calc", "measured"]
_CERTAINTIES = ("paper", "repo", "issue", "third-party", "calc", "measured")
_CARD_KEYS = ("title", "source", "certainty", "protocol", "data", "settings", "deviations", "sizes", "numbers")
_SIZE_KEYS = ("suite", "says", "cost")
_NUMBER_KEYS = (
    "method",
    "cells",
    "metrics",
    "cases",
    "source",
    "certainty",
    "caution",
    "settings",
    "deviations",
    "not_comparable",
)
_COST_KEYS = ("parameters", "tokens", "evaluated_tokens", "epochs", "bytes_per_parameter")


@dataclass(frozen=True)
class Cost:
    """What a size needs, from which its cost is predicted.

    Attributes:
        parameters: of the backbone.
        tokens: of one pass over the training data.
        evaluated_tokens: of one pass over the test cases.
        epochs: passes over the training data.
        bytes_per_parameter: 16 for full fine-tuning with Adam in mixed precision; 2 for a frozen backbone in bfloat16.
    """

    parameters: float
    tokens: float
    evaluated_tokens: float
    epochs: float
    bytes_per_parameter: float


@dataclass(frozen=True)
class Size:
    """One way to run a card: `paper`, as published, or `small`, what a CPU can do.

    Attributes:
        suite: the grid.
        says: what is smaller here, in a sentence for the page.
        cost: None where the suite needs no language model.
    """

    suite: Path
    says: str
    cost: Cost | None


@dataclass(frozen=True)
class Published:
    """One row of a paper's table.

    Attributes:
        cells: wanted labels on axes of the grid; the runs that have them all stand beside this row, seeds averaged.
        metrics: published value by our name of the metric; None where nothing was published.
        digits: decimals that each was printed with.
        cases: test cases behind the published number where they differ from ours, so that it has noise of its own.
        caution: what a reader must know of this row.
        not_comparable: by size, or under `all`, why our number is no reproduction of it.
    """

    method: str
    cells: Mapping[str, str]
    metrics: Mapping[str, float | None]
    digits: Mapping[str, int]
    cases: int | None
    source: str
    certainty: Certainty
    caution: str
    settings: Mapping[str, Any]
    deviations: tuple[str, ...]
    not_comparable: Mapping[str, str]


@dataclass(frozen=True)
class Card:
    """A paper's table.

    Attributes:
        data: published counts of the data, by our names of the statistics.
        settings: the paper's settings by dotted key of the resolved config; ours that differ are listed.
        deviations: what no setting tells.
    """

    name: str
    title: str
    source: str
    protocol: str
    data: Mapping[str, int]
    settings: Mapping[str, Any]
    deviations: tuple[str, ...]
    sizes: Mapping[str, Size]
    numbers: tuple[Published, ...]


def card_names() -> list[str]:
    """Names of the cards.

    Example:
        >>> "instructrec_games" in card_names()
        True
    """
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def load_card(name: str) -> Card:
    """Reads a card by its name, or from a path that ends in `.yaml`.

    Raises:
        InputError: there is no such card, or something in it has no meaning.

    Example:
        >>> load_card("instructrec_games").numbers[1].method
        'SASRec'
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CARDS / f"{name}.yaml"
    if path.parent == CARDS and not path.is_file():
        raise InputError(f"no published table {name!r}{nearest_hint(name, card_names())}")
    content, _ = read_yaml(path)
    content, where = _mapping(content, str(path), _CARD_KEYS), str(path)
    for key in ("title", "source", "protocol"):
        _text(content.get(key), f"{where}: {key}")
    numbers = _list(content.get("numbers"), f"{where}: numbers")
    sizes = _mapping(content.get("sizes"), f"{where}: sizes", ("small", "paper"))
    if not sizes or not numbers:
        raise InputError(f"{where}: a card needs sizes and numbers")
    shared = {"source": content["source"], "certainty": content.get("certainty")}
    return Card(
        name=path.stem,
        title=content["title"],
        source=content["source"],
        protocol=content["protocol"],
        data=_mapping(content.get("data") or {}, f"{where}: data"),
        settings=_mapping(content.get("settings") or {}, f"{where}: settings"),
        deviations=_texts(content.get("deviations"), f"{where}: deviations"),
        sizes={key: _size(entry, f"{where}: sizes.{key}") for key, entry in sizes.items()},
        numbers=tuple(_number(entry, shared, f"{where}: numbers[{i}]") for i, entry in enumerate(numbers)),
    )


def _size(entry: Any, where: str) -> Size:
    entry = _mapping(entry, where, _SIZE_KEYS)
    suite = located(_text(entry.get("suite"), f"{where}.suite"))
    if not suite.is_file():
        raise InputError(f"{where}.suite: no file {entry['suite']}")
    cost = entry.get("cost")
    if cost is not None:
        cost = _mapping(cost, f"{where}.cost", _COST_KEYS)
        for key in _COST_KEYS:
            _positive(cost.get(key), f"{where}.cost.{key}")
        cost = Cost(**{key: float(value) for key, value in cost.items()})
    return Size(suite, _text(entry.get("says"), f"{where}.says"), cost)


def _number(entry: Any, shared: Mapping[str, Any], where: str) -> Published:
    entry = _mapping(entry, where, _NUMBER_KEYS)
    metrics = _mapping(entry.get("metrics"), f"{where}.metrics")
    if not metrics:
        raise InputError(f"{where}.metrics: no metric")
    for key, value in metrics.items():
        if metric_base(key) not in DEFINITIONS and key != "auc":
            raise InputError(f"{where}.metrics: no metric {key}{nearest_hint(key, DEFINITIONS)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{where}.metrics.{key}: a number or null is needed, got {value!r}")
    certainty = entry.get("certainty") or shared["certainty"]
    if certainty not in _CERTAINTIES:
        raise InputError(f"{where}.certainty: {certainty!r}{nearest_hint(str(certainty), _CERTAINTIES)}")
    cases, reasons = entry.get("cases"), entry.get("not_comparable") or {}
    if cases is not None:
        _positive(cases, f"{where}.cases")
    reasons = {"all": reasons} if isinstance(reasons, str) else reasons
    return Published(
        method=_text(entry.get("method"), f"{where}.method"),
        cells={key: str(value) for key, value in _mapping(entry.get("cells") or {}, f"{where}.cells").items()},
        metrics={key: None if value is None else float(value) for key, value in metrics.items()},
        digits={key: decimals(value) for key, value in metrics.items() if value is not None},
        cases=cases,
        source=_text(entry.get("source") or shared["source"], f"{where}.source"),
        certainty=certainty,
        caution=str(entry.get("caution") or ""),
        settings=_mapping(entry.get("settings") or {}, f"{where}.settings"),
        deviations=_texts(entry.get("deviations"), f"{where}.deviations"),
        not_comparable=_mapping(reasons, f"{where}.not_comparable", ("all", "small", "paper")),
    )


def decimals(value: float) -> int:
    """Decimals that a number is written with; four at least, as tables of metrics between 0 and 1 have.

    Example:
        >>> decimals(0.25), decimals(0.11059)
        (4, 5)
    """
    return max(4, len(repr(float(value)).partition(".")[2]))


def _mapping(entry: Any, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise InputError(f"{where}: a mapping (key: value) is needed, got {str(entry)[:80]!r}")
    for key in entry if known else ():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{nearest_hint(key, known)}")
    return entry


def _list(entry: Any, where: str) -> list[Any]:
    if not isinstance(entry, list | None):
        raise InputError(f"{where}: a list is needed, got {str(entry)[:80]!r}")
    return entry or []


def _texts(entry: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in _list(entry, where))


def _text(entry: Any, where: str) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise InputError(f"{where}: a text is needed, got {entry!r}")
    return " ".join(entry.split())


def _positive(entry: Any, where: str) -> None:
    if isinstance(entry, bool) or not isinstance(entry, int | float) or entry <= 0:
        raise InputError(f"{where}: a positive number is needed, got {entry!r}")
