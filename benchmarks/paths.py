"""Where the checkout is, and how paths are printed."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
"""The root of the checkout: commands run here, and print paths from here."""


def printed_path(path: Path) -> str:
    """Return a path as commands print it: from the checkout's root where it lies inside, else absolute.

    Args:
        path: A relative one is taken from the current directory.

    Example:
        >>> printed_path(CHECKOUT / "configs" / "model" / "lora.yaml")
        'configs/model/lora.yaml'
    """
    whole = Path(os.path.abspath(path.expanduser()))
    return whole.relative_to(CHECKOUT).as_posix() if whole.is_relative_to(CHECKOUT) else str(whole)
