"""`instructrec audit`: leaks, ties, ids and candidate positions of a data config, before anything is trained on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit.checks import Finding, audit, label_collisions, target_in_prompts
from datamodules.instructions.slates import SlateMaker
from datamodules.protocol.sequences import Sequences
from datamodules.sources.pretrained import check_backbone_name

EPILOG = """\
example: instructrec audit -c configs/data/ml_100k.yaml --data.protocol.split temporal --json audit.json

Prints one line a check: its verdict, how many of how many, and what to do next. `leak` and `warning` fail the audit;
`note` tells what the rules imply and fails nothing. --memorisation names a causal language model, which is asked to
complete the catalogue's titles; it is the only check that loads weights.

exit codes: 0 clean, 1 something was found, 2 the input is wrong"""


def run_command(arguments: Sequence[str]) -> int:
    """Runs `audit`; returns 1 where it finds something."""
    data, options = _configured(list(arguments))
    if options.memorisation:
        check_backbone_name(options.memorisation)
    findings, made = findings_of(data)
    if options.memorisation:
        from benchmarks.audit.probes import memorisation_findings, model_likelihood

        likelihood = model_likelihood(options.memorisation)
        findings += memorisation_findings(made.titles, likelihood, options.memorisation)
    print(table(findings, made.description, made.fingerprint))
    if options.json:
        write_json(options.json, findings, made.description, made.fingerprint)
        print(f"findings: {options.json}")
    return int(any(finding.alarms for finding in findings))


def findings_of(data: Any) -> tuple[list[Finding], Sequences]:
    """All checks and probes of a data module, and what they were made on; neither tokenizer nor weights are loaded."""
    from benchmarks.audit.probes import run_probes

    text, made = data.freeze().text, data.sequences
    maker = SlateMaker(made, data.protocol, negatives=0, targets=1, seed=0)
    chosen = np.unique(np.linspace(0, len(made.test) - 1, min(500, len(made.test))).astype(int))
    slates = [maker.evaluation(made.test, case) for case in chosen.tolist()]
    pointwise = text.template.form in ("like", "rating")
    rendered = [text.instruction(slate) for slate in slates]
    prompts = [f"{each.system}\n{each.user}" for each in rendered]
    shown = [[made.titles[item] for item in text.shown(slate)] for slate in slates]
    targets = ["" if pointwise else made.titles[slate.target] for slate in slates]
    findings = [
        *audit(made, data.protocol),
        target_in_prompts(prompts, shown, targets),
        label_collisions(text.template.answers, made.titles),
        *run_probes(made, data.protocol),
    ]
    return findings, made


def table(findings: Sequence[Finding], description: dict[str, Any], fingerprint: str) -> str:
    """The findings for people: worst first, then what to do.

    Example:
        >>> print(table([Finding("ids", "ok", 0, 9, "in order")], {"split": "ratio", "statistics": {}}, "ab" * 32))
        split ratio; protocol fingerprint abababababababab
        <BLANKLINE>
        ok        ids  0 of 9  in order
        <BLANKLINE>
        clean: nothing found
    """
    order = ("leak", "warning", "note", "ok")
    ranked = sorted(findings, key=lambda finding: order.index(finding.verdict))
    name = max(len(finding.check) for finding in ranked)
    counts = [f"{finding.count:,} of {finding.of:,}" for finding in ranked]
    width = max(map(len, counts))
    lines = [f"split {description['split']}; protocol fingerprint {fingerprint[:16]}", ""]
    lines += [
        f"{finding.verdict:8}  {finding.check:{name}}  {count:>{width}}  {finding.told}"
        for finding, count in zip(ranked, counts, strict=True)
    ]
    alarms = [finding for finding in ranked if finding.alarms]
    lines += ["", f"{len(alarms)} found; next:" if alarms else "clean: nothing found"]
    lines += [f"  {finding.check}: {finding.remedy}" for finding in alarms]
    return "\n".join(lines)


def write_json(path: Path, findings: Sequence[Finding], description: dict[str, Any], fingerprint: str) -> None:
    """Writes the findings as JSON."""
    from dataclasses import asdict

    from datamodules.contract.files import write_atomic

    content = {
        "format": 1,
        "fingerprint": fingerprint,
        "protocol": description,
        "findings": [asdict(f) for f in findings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1))


def _configured(arguments: list[str]) -> tuple[Any, argparse.Namespace]:
    from benchmarks.cli.data_only import configured_data

    def add_options(parser: Any) -> None:
        parser.add_argument("--json", type=Path | None, default=None, help="also write the findings to this file")
        parser.add_argument(
            "--memorisation", type=str | None, default=None, help="causal backbone asked for the titles"
        )

    description = "Looks for leaks in a data set and its frozen cases."
    data, config = configured_data("audit", description, EPILOG, arguments, add_options)
    return data, argparse.Namespace(json=config.json, memorisation=config.memorisation)
