"""One file for each command of `instructrec`."""

from __future__ import annotations

import argparse
import sys


class LineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Prints the line and exits with 2."""
        print(f"instructrec: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)
