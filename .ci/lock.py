"""Writes the locks that `make` installs from: every file of every pinned release by its SHA-256.

    python .ci/lock.py            writes locks/run.txt and locks/dev.txt from constraints.txt, with uv (pip install uv)

`constraints.txt` names the versions; run it in the environment that holds them, for which package needs which is read
from what is installed. torch is left out: its build differs between machines (CPU, CUDA, ROCm; the package index, a
local file), so no list of sums can hold for all, and `make` installs it by its version alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNHASHED = {"torch"}
BUILD = {"setuptools"}  # builds the editable install, without an isolated environment that would fetch its own
HEADER = "# Written by .ci/lock.py from constraints.txt; `make lock` writes it again. {what}\n"


def canonical(name: str) -> str:
    """A package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """The pinned line of each package, by its canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(line.split("==")[0]): line for line in lines if "==" in line and not line.startswith("#")}


def closure(wanted: list[str], known: set[str]) -> set[str]:
    """Packages that requirements need, among those that are pinned."""
    todo, found = list(wanted), set[str]()
    while todo:
        text = todo.pop()
        match = re.match(r"\s*([\w.-]+)\s*(?:\[([\w,\s-]+)\])?", text)
        if match is None:
            sys.exit(f"not a requirement: {text!r}")
        name, extras = canonical(match[1]), {e.strip() for e in (match[2] or "").split(",")} - {""}
        if name not in known or (name in found and not extras):
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            sys.exit(f"{name} is pinned and not installed: run this in the environment of constraints.txt")
        for line in needed:
            requirement, _, marker = line.partition(";")
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
            if extra is None or extra[1] in extras:
                todo.append(requirement)
    return found


def write(path: Path, names: set[str], pinned: dict[str, str], what: str) -> None:
    """Writes one lock."""
    wanted = "\n".join(sorted(pinned[name] for name in names)) + "\n"
    command = ["uv", "pip", "compile", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "--quiet", "-"]
    made = subprocess.run(command, input=wanted, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(made.stderr)
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEADER.format(what=what) + made.stdout, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(names)} packages, {made.stdout.count('--hash=')} files")


def main() -> None:
    """Writes both locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins()
    run = closure(project["dependencies"], set(pinned)) - UNHASHED
    everything = set(pinned) - UNHASHED
    write(ROOT / "locks" / "run.txt", run | BUILD, pinned, "What a run needs; torch is pinned apart.")
    write(ROOT / "locks" / "dev.txt", everything, pinned, "What tests need too; torch is pinned apart.")


if __name__ == "__main__":
    main()
