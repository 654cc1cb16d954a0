"""Lightning writes and reads checkpoints through `datamodules.contract.checkpoints`: a kill leaves them whole, damage shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from datamodules.contract.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint


class DurableCheckpointIO(CheckpointIO):
    """Lightning's door to these files."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,
    ) -> None:
        """Writes durably."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads onto the CPU, after checking, without running code."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes the file and its manifest."""
        remove_checkpoint(Path(path))
