"""The resolved config, written beside the run and told to loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from benchmarks.ledger import write_atomic


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's own folder and logs it."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Writes once per run, before anything is trained."""
        if self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)  # it was validated when it was read
        write_atomic(folder / "config.yaml", text)
        for logger in trainer.loggers:
            if isinstance(logger, Logger):
                logger.log_hyperparams(flatten(self.config.as_dict()))
        self.already_saved = True


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, as loggers want them.

    Example:
        >>> flatten({"model": {"r": 8}, "seed": 1})
        {'model.r': 8, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
    return flat
