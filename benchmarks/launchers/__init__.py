"""Where the cells of a grid run."""

from benchmarks.launchers.local import Summary, run_local

__all__ = ["Summary", "run_local"]
