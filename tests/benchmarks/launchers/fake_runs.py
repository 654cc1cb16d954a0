"""FAKE is one run of a grid and stands for ``python -m benchmarks``; it says in a log what happens to it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.grid.cells import Cell

FAKE = r"""
import json, os, signal, sys, time
options = dict(part[2:].split("=", 1) for part in sys.argv[1:] if "=" in part)
out = sys.argv[sys.argv.index("--out") + 1]
cell, root = os.path.basename(out), os.path.dirname(os.path.dirname(out))

def say(word):
    log = os.open(root + "/log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(log, f"{word} {cell}\n".encode())
    os.close(log)

def record(status, error=None):
    content = {"format": 1, "status": status, "error": error, "cell": cell, "score": sum(cell.encode())}
    text = json.dumps(content)
    open(out + "/record.tmp", "w").write(text)
    os.replace(out + "/record.tmp", out + "/record.json")

def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

def interrupted(number, frame):
    record("failed", "interrupted")
    sys.exit(1)

say("start")
if os.path.exists(out + "/half-written"):
    say("dirty")
marker = f"{root}/pid-{cell}"
if os.path.exists(marker) and alive(open(marker).read()):
    say("overlap")
open(marker + ".tmp", "w").write(str(os.getpid()))
os.replace(marker + ".tmp", marker)
open(out + "/half-written", "w").write("debris")
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
open(out + "/threads", "w").write(os.environ["OMP_NUM_THREADS"] + " " + gpus)
open(out + "/group", "w").write(os.environ["WANDB_RUN_GROUP"])
do = options.get("do", "finish")
if do == "record-on-signal":
    signal.signal(signal.SIGTERM, interrupted)
    say("ready")
elif do == "ignore-signals":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ready")
time.sleep(float(options.get("seconds", 0.1)))
if do == "crash":
    print("step 1\rstep 2\nValueError: \x1b[31mloss is NaN\x1b[0m")
    sys.exit(3)
if do == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "preempted" and sys.argv[-2:] != ["--ckpt_path", "last"]:
    for name in ("resume/step-00000001.ckpt", "checkpoints/best.ckpt"):
        os.makedirs(out + "/" + name.split("/")[0])
        open(out + "/" + name, "w").write("state")
    record("interrupted", "interrupted by SIGTERM")
    sys.exit(143)
if do == "preempted":
    say("continued" if open(out + "/checkpoints/best.ckpt").read() == "state" else "lost")
if do == "vanish":
    sys.exit(0)
if do == "garbage":
    open(out + "/record.json", "w").write("{")
    sys.exit(0)
record("failed" if do == "report-failure" else "finished", "no data" if do == "report-failure" else None)
"""


def make_cells(root: Path, options: dict[str, tuple[str, ...]]) -> list[Cell]:
    """Cells with the given options for FAKE."""
    return [
        Cell(
            name,
            name,
            (("model", name),),
            ("instructrec", "fit", *extra, "--out", f"{root}/runs/{name}"),
            name,
        )
        for name, extra in options.items()
    ]


def fake_prefix(root: Path) -> tuple[str, ...]:
    """The command that stands for ``python -m benchmarks``."""
    return (sys.executable, "-I", "-S", str(root / "fake.py"))


def said(root: Path, word: str) -> list[str]:
    lines = (root / "log").read_text().splitlines() if (root / "log").exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == word]


def records(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in root.glob("runs/*/record.json")}


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
