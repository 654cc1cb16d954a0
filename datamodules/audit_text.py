"""Leaks in rendered text: the answer inside its own question, and titles that look like labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from datamodules.finding import Finding, Verdict


def target_in_prompts(prompts: Sequence[str], shown: Sequence[Sequence[str]], targets: Sequence[str]) -> Finding:
    """Prompts that hold the target's title in another place than the titles they are meant to show.

    Args:
        prompts: rendered instructions.
        shown: for each the titles it shows on purpose: history, listed candidates.
        targets: for each the title that is to be found.

    Example:
        >>> target_in_prompts(["Seen: Up. Next?", "Seen: Up. Hint: Heat"], [["Up"], ["Up"]], ["Heat", "Heat"]).count
        1
    """
    count = 0
    for prompt, titles, target in zip(prompts, shown, targets, strict=True):
        rest = prompt
        for title in sorted(titles, key=len, reverse=True):  # the longest first: "Alien" is inside "Aliens"
            rest = rest.replace(title, "\0", 1)
        if len(target.strip()) < 3 or target in titles:  # one or two letters stand everywhere
            continue
        count += re.search(rf"(?<!\w){re.escape(target)}(?!\w)", rest) is not None
    remedy = "remove the answer from the template's text"
    told = "rendered prompts that name the answer beside the titles they show"
    return Finding(
        "target title inside the prompt", "leak" if count else "ok", count, len(prompts), told, remedy if count else ""
    )


def label_collisions(
    answers: Sequence[str], titles: Sequence[str], encode: Callable[[str], list[int]] | None = None
) -> Finding:
    """Titles that are or begin with a label word, and labels that a tokenizer does not tell apart at once.

    Args:
        answers: the template's fixed answers; empty where items are answered by title.
        titles: of the catalogue.
        encode: a tokenizer, to compare the labels' first tokens.

    Example:
        >>> label_collisions(["Yes", "No"], ["Yes Man", "Heat", "Nobody"]).count
        1
    """
    labels = [answer.strip().lower() for answer in answers]
    count = sum(
        any(re.match(rf"{re.escape(label)}(?!\w)", title.strip().lower()) is not None for label in labels)
        for title in titles
    )
    told = "titles that begin with a label: whoever looks for labels by their tokens takes them for answers"
    if encode is not None and answers:
        first = [encode(answer)[:1] for answer in answers]
        if len({tuple(tokens) for tokens in first}) < len(answers):
            return Finding(
                "label-token collisions",
                "leak",
                len(answers),
                len(answers),
                "labels that begin with one token",
                "choose other label words",
            )
    same = len(set(labels)) < len(labels)
    verdict: Verdict = "leak" if same else "warning" if count else "ok"
    remedy = "choose other label words, or rename the titles"
    return Finding("label-token collisions", verdict, count, len(titles), told, "" if verdict == "ok" else remedy)
