"""`instructrec`: the command line."""

from __future__ import annotations

import sys

USAGE = """\
instructrec: benchmark the ways of tuning a language model for recommendation

  instructrec fit      -c configs/model/lora.yaml -c configs/data/ml_100k.yaml [--model.r 16 ...]   tune, verify, test
  instructrec fit      ... --out DIR --ckpt_path last                                               continue what stopped
  instructrec validate|test -c MODEL.yaml -c DATA.yaml --ckpt_path RUN/checkpoints/best.ckpt        measure
  instructrec predict  -c MODEL.yaml -c DATA.yaml --ckpt_path CKPT --data.predict_file users.jsonl  rank for new users
  instructrec benchmark SUITE.yaml --out DIR [--dry-run]                                            run or continue a grid
  instructrec annotate -c DATA.yaml --out FILE.jsonl [...]                                          texts by a language model
  instructrec audit    -c DATA.yaml [--json FILE]                                                   leaks and ties of the data
  instructrec perf     [NAME ...] --out FILE.json                                                   speed against peers
  instructrec reproduce NAME --out DIR [--size paper]                                               a paper's table beside ours
  instructrec report   DIR                                                                          tables, figures, page
  instructrec export   CKPT --out DIR [--merge]                                                     for PEFT, transformers

  instructrec COMMAND --help explains every option.
  --allow-import PACKAGE, before or after the command, lets configs name classes of that package (a plug-in)."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; what the machine refuses it, such as room on a disk, is told in one line.

    Args:
        arguments: command line without the program's name; None takes it from `sys.argv`.

    Returns:
        As `run_command`.
    """
    try:
        return run_command(sys.argv[1:] if arguments is None else arguments)
    except Exception as error:
        from datamodules.contract.errors import machine_failure

        if (line := machine_failure(error)) is None:
            raise
        print(f"instructrec: {line}", file=sys.stderr)
        return 1


def run_command(arguments: list[str]) -> int:
    """Runs one command and returns its exit code.

    0 done, 2 the input is wrong, 1 anything else; 130, 143, 138 after SIGINT, SIGTERM, SIGUSR1.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    while arguments[1:] and arguments[0].partition("=")[0] == "--allow-import":  # before the command as after it
        count = 1 if "=" in arguments[0] else 2
        arguments = [*arguments[count:], *arguments[:count]]
    command = arguments[0]
    if command == "benchmark":  # quick: neither it nor report needs torch
        from benchmarks.commands.benchmark import run_command as run_benchmark

        return run_benchmark(arguments[1:])
    if command == "report":
        from benchmarks.commands.report import run_command as run_report

        return run_report(arguments[1:])
    if command == "reproduce":
        from benchmarks.commands.reproduce import run_command as run_reproduce

        return run_reproduce(arguments[1:])
    if command == "annotate":
        from benchmarks.commands.annotate import run_command as run_annotate

        return run_annotate(arguments[1:])
    if command == "audit":
        from benchmarks.commands.audit import run_command as run_audit

        return run_audit(arguments[1:])
    if command == "perf":
        from benchmarks.commands.perf import run_command as run_perf

        return run_perf(arguments[1:])
    if command == "export":
        from benchmarks.commands.export import run_command as run_export

        return run_export(arguments[1:])
    if command in ("fit", "validate", "test", "predict"):
        from benchmarks.commands.fit import run_command as run_lightning

        return run_lightning(arguments)
    import difflib

    known = [
        "fit",
        "validate",
        "test",
        "predict",
        "benchmark",
        "report",
        "perf",
        "audit",
        "annotate",
        "export",
        "reproduce",
    ]
    near = difflib.get_close_matches(command, known, n=1, cutoff=0)[0]
    print(f"instructrec: no command {command!r}; the nearest is {near!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
