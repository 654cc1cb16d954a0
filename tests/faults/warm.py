"""A warm process that forks one child a trial, so that a run starts in a second instead of ten.

The warm process has imported everything and has started no thread: torch, polars and tokenizers start theirs on first
use, in the children. Run as a script it serves; `Warm` is the other end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900
"""Seconds after which a trial counts as hanging; on a busy machine one may take minutes."""


class Warm:
    """Runs trials in children of a warm process.

    Args:
        environment: of all trials.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet | environment | {"PYTHONPATH": path},
        )

    def save(self, log: Path, **plan: Any) -> bool:
        """Saves a checkpoint in a child.

        Args:
            log: file of what it prints.
            **plan: of `tests.faults.injected.save_and_die`.

        Returns:
            Whether it was killed.
        """
        code = self._ask({"log": str(log), "do": "save_and_die", "plan": plan})
        assert code <= 0, log.read_text()
        return code < 0

    def run(self, log: Path, arguments: list[str], **plan: Any) -> int:
        """Runs `instructrec ARGUMENTS` in a child.

        Args:
            log: file of what it prints.
            arguments: of the command.
            **plan: of `tests.faults.injected.carry_out`.

        Returns:
            Exit code, or the negative number of the signal that ended it.
        """
        return self._ask({"log": str(log), "do": "carry_out", "plan": {"arguments": arguments, **plan}})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the warm process has ended"
        return int(line)

    def close(self) -> None:
        """Ends the warm process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def serve() -> None:
    """Answers each request with the exit status of a child."""
    import peft  # noqa: F401
    import torch
    import torch._dynamo  # imported by the first step of any optimiser
    import wandb  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.t5 import modeling_t5  # noqa: F401

    import benchmarks.cli.app
    import benchmarks.commands.fit

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):  # fills the parser's caches
        configs = ["-c", str(ROOT / "configs/model/lora.yaml"), "-c", str(ROOT / "configs/data/ml_100k.yaml")]
        benchmarks.cli.app.build(["fit", *configs, "--print_config"])
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_the_child(request)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # loader workers of a killed run
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _be_the_child(request: dict[str, Any]) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        signal.alarm(TIMEOUT)
        log = os.open(request["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from tests.faults import injected

        code = getattr(injected, request["do"])(**request["plan"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
