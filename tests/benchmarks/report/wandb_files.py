"""What is in the file of an offline W&B run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def wandb_records(file: Path) -> list[Any]:
    """The records of an offline W&B run: a LevelDB log (32 KiB blocks of checksum, length, type) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    raw, place, parts, found = file.read_bytes(), 7, b"", []
    assert raw[:4] == b":W&B"
    while place + 7 <= len(raw):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        if kind == 0:
            break
        parts = (parts if kind in (3, 4) else b"") + raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(parts)
            found.append(entry)
    return found
