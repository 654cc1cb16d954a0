"""A side of a comparison that never comes to an end; child processes import it by name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.perf.setting import Setting


def hang(place: Path, _: Setting) -> Any:
    """Says which process it runs in, and hangs."""
    place.with_suffix(".tmp").write_text(str(os.getpid()))
    place.with_suffix(".tmp").rename(place)
    time.sleep(60)
