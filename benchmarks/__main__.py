"""`instructrec`: the command line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

USAGE = """\
instructrec: benchmark the ways of tuning a language model for recommendation

  instructrec ls       [methods|objectives|data|suites|tables ...]              what there is to choose from
  instructrec fit      -c lora -c ml_100k [--model.r 16 ...]                    tune, verify, test
  instructrec fit      ... --out DIR --ckpt_path last                           continue what stopped
  instructrec validate|test -c MODEL -c DATA --ckpt_path RUN/checkpoints/best.ckpt  measure
  instructrec predict  -c MODEL -c DATA --ckpt_path CKPT --data.predict_file users.jsonl  rank for new users
  instructrec benchmark SUITE [--out DIR] [--dry-run]                           run or continue a grid
  instructrec report   DIR                                                      tables, figures, page
  instructrec reproduce NAME [--out DIR] [--size paper]                         a paper's table beside ours
  instructrec audit    -c DATA [--json FILE]                                    leaks and ties of the data
  instructrec annotate -c DATA --out FILE.jsonl [...]                           texts by a language model
  instructrec perf     [NAME ...] --out FILE.json                               speed against peers
  instructrec ensemble RUN RUN [...] --out DIR                                  one row out of several
  instructrec export   CKPT --out DIR [--merge]                                 for PEFT, transformers

  MODEL, DATA, SUITE: a name that `instructrec ls` lists, or the path of a YAML file.
  instructrec COMMAND --help explains a command's options; instructrec --version says which version this is.
  --allow-import PACKAGE, before or after the command, lets configs name classes of that package (a plug-in)."""

COMMANDS = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), "fit"),
    **{
        name: name
        for name in ("ls", "benchmark", "report", "reproduce", "audit", "annotate", "perf", "ensemble", "export")
    },
}
"""The module of `benchmarks.commands` that runs each command."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; what the machine refuses, such as room on a disk, is told in one line.

    0 done, 2 the input is wrong, 1 anything else; 130, 143, 138 after SIGINT, SIGTERM, SIGUSR1.
    """
    try:
        return run_command(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # whoever read our lines, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from datamodules.contract.errors import InputError, machine_failure

        if isinstance(error, InputError):
            print(f"instructrec: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        if (line := machine_failure(error)) is None:
            raise
        print(f"instructrec: {line}", file=sys.stderr)
        return 1


def run_command(arguments: list[str]) -> int:
    """Runs one command; exceptions are the caller's."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    from benchmarks.paths import package_version, shadowed_package

    if (message := shadowed_package()) is not None:
        print(f"instructrec: {message}", file=sys.stderr)
        return 2
    if arguments[0] == "--version":
        print(f"instructrec {package_version()}")
        return 0
    while arguments[1:] and arguments[0].partition("=")[0] == "--allow-import":  # before the command as after it
        count = 1 if "=" in arguments[0] else 2
        arguments = [*arguments[count:], *arguments[:count]]
    command = arguments[0]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0)[0]
        print(f"instructrec: no command {command!r}; the nearest is {nearest!r}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.commands.{COMMANDS[command]}")
    return int(module.run_command(arguments if COMMANDS[command] == "fit" else arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
