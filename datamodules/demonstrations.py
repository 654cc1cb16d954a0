"""Demonstrations: solved cases of training users at the beginning of every prompt (in-context learning, k-shot)."""

from __future__ import annotations

import numpy as np

from datamodules.instructions import Demonstration
from datamodules.slate_text import SlateText
from datamodules.slates import SlateMaker
from datamodules.sources import InputError


def draw_demonstrations(slates: SlateMaker, text: SlateText, shots: int, seed: int) -> list[Demonstration]:
    """The last training target of users that a seed draws, as solved cases; the same for every prompt (Brown et al. 2020).

    Held-out events are never shown. Users of evaluated cases are drawn only where there are too few others; of them,
    too, only training events are shown.

    Args:
        slates: makes the training cases.
        text: words them.
        shots: number of demonstrations, each of another user; 0 draws none.
        seed: of the draw.

    Raises:
        InputError: there are fewer users with a training target.
    """
    last = {int(user): window for window, user in enumerate(slates.windows.user)}
    users = np.array(sorted(last), dtype=np.int64)
    if shots > len(users):
        raise InputError(f"model.shots is {shots}, and the data has {len(users)} users with training targets; lower it")
    cases = (slates.sequences.validation, slates.sequences.test)
    others = np.setdiff1d(users, np.concatenate([each.user for each in cases]))
    pool = others if len(others) >= shots else users
    drawn = np.random.default_rng((seed, 0x5407)).choice(pool, size=shots, replace=False) if shots else pool[:0]
    made = []
    for user in drawn.tolist():
        slate = slates.training(last[user], 0)[-1]
        instruction = text.instruction(slate)
        gain = np.asarray(text.branches(slate)[1], dtype=np.float64)
        made.append(Demonstration(instruction, instruction.answers[int(gain.argmax())], slate.user))
    return made
