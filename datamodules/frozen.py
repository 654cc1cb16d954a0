"""The protocol's outcome kept on disk: the frozen cases in one verified file, so that a second run draws nothing.

# U users, I items, E events, S cases
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.array_cache import Arrays, cached_arrays
from datamodules.interactions import Interactions
from datamodules.protocol import PROTOCOL_VERSION, Cases, Protocol, Sequences, apply_protocol

SMALL = 1_000_000
"""Data with fewer interactions is not kept: applying the protocol takes less than a second."""


def frozen_sequences(data: Interactions, protocol: Protocol, *, least: int = SMALL) -> Sequences:
    """What `apply_protocol` gives, from the cache where it holds it.

    The file begins with its own sha256, which is compared on every use; it is keyed by the tables' content, the settings
    and the protocol's version, so other data or rules never find it.

    Args:
        data: the typed tables.
        protocol: the rules.
        least: smaller data is prepared anew.

    Example:
        >>> import os, tempfile, polars as pl
        >>> from unittest.mock import patch
        >>> events = {"user": ["a"] * 4, "item": list("xyzx"), "rating": [5.0] * 4, "timestamp": [1.0, 2.0, 3.0, 4.0]}
        >>> data = Interactions(pl.DataFrame(events), pl.DataFrame({"item": [*"xyz"], "title": [*"XYZ"]}), "sum")
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INSTRUCTREC_CACHE=folder):
        ...     made = [frozen_sequences(data, Protocol(candidates="full"), least=1) for _ in range(2)]
        ...     made[0].fingerprint == made[1].fingerprint == apply_protocol(data, Protocol(candidates="full")).fingerprint
        True
    """
    if len(data.interactions) < least:
        return apply_protocol(data, protocol)
    key = {
        "version": str(PROTOCOL_VERSION),
        "data": data.checksum,
        "tables": _digest(data),
        "protocol": json.dumps(protocol.settings(), sort_keys=True),
    }
    return _unpacked(cached_arrays("protocol", key, lambda: _packed(apply_protocol(data, protocol))).arrays)


def _digest(data: Interactions) -> str:
    """Of the tables' content: the raw files' sum does not tell how they were read."""
    digest = hashlib.sha256()
    for table in (data.interactions, data.items):
        digest.update(json.dumps([[name, str(of)] for name, of in table.schema.items()]).encode())
        digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def _packed(made: Sequences) -> Arrays:
    texts = {"user_ids": made.user_ids, "item_ids": made.item_ids, "titles": made.titles}
    told = {"description": made.description, "fingerprint": made.fingerprint, "history": made.history}
    arrays: Arrays = {name: _bytes(value) for name, value in (texts | {"told": told}).items()}
    arrays |= {name: getattr(made, name) for name in ("item", "rating", "start", "train_end", "timestamp", "row")}
    if made.shots is not None:
        arrays["shots"] = made.shots
    for split in ("validation", "test"):
        cases: Cases = getattr(made, split)
        columns = {name: getattr(cases, name) for name in ("user", "target", "candidates", "history_end")}
        arrays |= {f"{split}.{name}": column for name, column in columns.items() if column is not None}
    return arrays


def _bytes(value: Sequence[str] | dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _unpacked(arrays: Arrays) -> Sequences:
    texts: dict[str, Any] = {
        name: json.loads(arrays[name].tobytes()) for name in ("user_ids", "item_ids", "titles", "told")
    }
    told = texts.pop("told")
    kept: dict[str, Any] = {name: arrays[name] for name in ("item", "rating", "start", "train_end", "timestamp", "row")}
    for split in ("validation", "test"):
        names = ("user", "target", "candidates", "history_end")
        columns: dict[str, Any] = {name: arrays.get(f"{split}.{name}") for name in names}
        kept[split] = Cases(**columns)
    return Sequences(**texts, **told, **kept, shots=arrays.get("shots"))
