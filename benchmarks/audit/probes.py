"""Scorers that know nothing and must score at chance; and whether a language model knows the catalogue by heart.

# S cases, C candidates, T titles
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.audit.checks import Finding, numeric_ids
from benchmarks.grid.progress import counted
from datamodules.protocol.pcg64 import generator
from datamodules.protocol.rules import Protocol
from datamodules.protocol.sequences import Sequences
from recmodels.metrics import ranking as metrics

Scorer = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""From history and candidates (ids as numbers) to a score for each candidate."""

PROBES: dict[str, Scorer] = {
    "constant": lambda _, offered: np.zeros(len(offered)),
    "position only": lambda _, offered: -np.arange(len(offered), dtype=np.float64),
}
ID_PROBES: dict[str, Scorer] = {
    "largest id plus one": lambda history, offered: -np.abs(offered - history.max() - 1).astype(np.float64)
}
"""Probes for data whose ids are numbers."""
LogLikelihood = Callable[[str, Sequence[str]], Sequence[float]]
"""From the beginning of a text and possible continuations to the (mean token) log-likelihood of each."""


def run_probes(made: Sequences, protocol: Protocol, most: int = 2000) -> list[Finding]:
    """Hit rates at 1 of scorers that know nothing, against chance."""
    numbers = numeric_ids(made.item_ids)
    probes = PROBES if numbers is None else PROBES | ID_PROBES
    ids = np.arange(len(made.item_ids)) if numbers is None else numbers
    chosen = np.unique(np.linspace(0, len(made.test) - 1, min(most, len(made.test))).astype(int))
    hits: dict[str, list[float]] = {name: [] for name in probes}
    chance: list[float] = []
    for case in chosen.tolist():
        offered = made.candidate_items(made.test, case, protocol.exclude_seen)
        history = made.item[made.start[made.test.user[case]] : made.test.shown[case]]
        relevance = torch.from_numpy((offered == made.item[made.test.target[case]]).astype(np.float64))[None]
        chance.append(1 / len(offered))
        for name, probe in probes.items():
            score = torch.from_numpy(probe(ids[history], ids[offered]))[None]
            hits[name].append(float(metrics.hit_rate(score, relevance, 1)))
    return [_against_chance(f"probe: {name}", found, chance) for name, found in hits.items()]


def _against_chance(name: str, hits: list[float], chance: list[float]) -> Finding:
    expected = sum(chance)
    spread = math.sqrt(sum(p * (1 - p) for p in chance))
    hit_count = sum(hits)
    # 4.5 standard errors, and a Poisson's tail where chance is next to nothing.
    wrong = hit_count > expected + 4.5 * spread + 4 or (
        name.endswith("constant") and abs(hit_count - expected) > 1e-6 * len(hits)
    )
    text = f"hit rate at 1 {hit_count / max(1, len(hits)):.4f}, chance {expected / max(1, len(hits)):.4f}"
    remedy = "the cases give their answers away: look at the ids and at the order of candidates"
    return Finding(name, "leak" if wrong else "ok", round(hit_count), len(hits), text, remedy if wrong else "")


def memorisation(titles: Sequence[str], likelihood: LogLikelihood, *, seed: int = 0, most: int = 200) -> float:
    """How much of a catalogue a model knows by heart: title completion, corrected for guessing.

    Each title's first words are shown; its own last words stand against those of nine other titles. Right answers above
    the one in ten of a guess, as a share: a model that holds the list has 1, one that knows nothing about 0.

    Example:
        >>> titles = [f"word{n} end{n}" for n in range(40)]
        >>> memorisation(titles, lambda start, ends: [float(f"{start} {end}" in titles) for end in ends])
        1.0
    """
    halves = [
        (" ".join(w[: (len(w) + 1) // 2]), " ".join(w[(len(w) + 1) // 2 :]))
        for w in map(str.split, titles)
        if len(w) > 1
    ]
    bits = generator(seed, "memorisation")
    order = np.argsort(bits.random_raw(len(halves)), kind="stable")[:most]
    others = sorted({end for _, end in halves})
    if len(others) < 10 or not len(order):
        raise ValueError("the catalogue has too few titles of several words")
    right = 0.0
    for place in counted(order.tolist(), len(order), "titles"):
        start, end = halves[place]
        wrong = [o for o in (others[r % len(others)] for r in bits.random_raw(60).tolist()) if o != end]
        score = np.array(likelihood(start, [end, *list(dict.fromkeys(wrong))[:9]]))
        right += float(score[0] == score.max()) / int((score == score.max()).sum())
    return (right / len(order) - 0.1) / 0.9


def renamed(titles: Sequence[str], seed: int = 0) -> list[str]:
    """A control catalogue that nobody can know: each title's last words exchanged for another's.

    Example:
        >>> sorted(renamed(["Star Wars", "Blue Velvet", "Pulp Fiction"]))[0].split()[0]
        'Blue'
    """
    split = [(w[: (len(w) + 1) // 2], w[(len(w) + 1) // 2 :]) for w in map(str.split, titles) if len(w) > 1]
    order = np.argsort(generator(seed, "renamed").random_raw(len(split)), kind="stable")
    turned = np.empty_like(order)
    turned[order] = np.roll(order, 1)  # one cycle: nobody keeps its own
    return [" ".join([*split[n][0], *split[other][1]]) for n, other in enumerate(turned.tolist())]


def model_likelihood(backbone: str) -> LogLikelihood:
    """Mean token log-likelihoods under a causal language model, in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    from datamodules.sources.pretrained import load_tokenizer, pretrained_folder

    tokenizer = load_tokenizer(backbone)
    model = AutoModelForCausalLM.from_pretrained(
        pretrained_folder(backbone), trust_remote_code=False, dtype=torch.float32
    ).eval()

    def likelihood(start: str, ends: Sequence[str]) -> list[float]:
        head = tokenizer(start, add_special_tokens=False)["input_ids"]
        tails = [tokenizer(" " + end, add_special_tokens=False)["input_ids"] for end in ends]
        width = max(map(len, tails))
        rows = torch.tensor([[*head, *tail, *[tokenizer.pad_token_id] * (width - len(tail))] for tail in tails])
        with torch.inference_mode():  # padding stands behind everything, where a causal model does not look
            logits = model(input_ids=rows, logits_to_keep=width + 1).logits[:, -width - 1 : -1].log_softmax(-1)
        label_logits = logits.gather(2, rows[:, len(head) :, None])[:, :, 0]
        return [float(row[: len(tail)].mean()) for row, tail in zip(label_logits, tails, strict=True)]

    return likelihood


def memorisation_findings(titles: Sequence[str], likelihood: LogLikelihood, name: str) -> list[Finding]:
    """The probe on the catalogue and on its renamed control.

    A model that knows the catalogue beats the control, whose titles are as plain English but exist nowhere.
    """
    real, control = memorisation(titles, likelihood), memorisation(renamed(titles), likelihood)
    asked = min(200, sum(len(title.split()) > 1 for title in titles))
    wrong = real - control > 0.15
    text = f"{name} completes {real:.0%} of titles beyond guessing, {control:.0%} of renamed ones"
    remedy = "report it beside the results, and compare on newer data or renamed titles"
    return [
        Finding(
            "memorised catalogue",
            "warning" if wrong else "ok",
            round(max(0.0, real) * asked),
            asked,
            text,
            remedy if wrong else "",
        )
    ]
