"""Few-shot training: so many examples, stratified by like, smaller samples inside larger ones.

# U users, E events, T training targets
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.rules import Protocol
from datamodules.seeded_bits import generator
from datamodules.sources import InputError

Ints = NDArray[np.int64]


def choose_shots(
    start: Ints, train_end: Ints, liked: NDArray[np.bool_], protocol: Protocol, context: NDArray[np.bool_] | None = None
) -> Ints | None:
    """Places of the training targets that are kept, ascending; None keeps all.

    Within each label the targets stand in a random order that depends on the seed; the i-th of n has the quantile
    (i + 1/2) / n, and targets are taken by quantile. So every sample has the labels in the proportion of all (to within
    one), and the sample of 16 is inside that of 64.

    Args:
        start: `[U + 1]` where each user's events begin.
        train_end: `[U]` where each user's training events end.
        liked: `[E]` the label of each event.
        protocol: `shots`, `train_share` and `seed` are used.
        context: `[E]` events that are shown and never asked for; None where there are no such events.

    Raises:
        InputError: there are fewer training examples than asked for.

    Example:
        >>> liked = np.array([True, False] * 5)
        >>> few = choose_shots(np.array([0, 10]), np.array([10]), liked, Protocol(shots=4))
        >>> int(liked[few].sum()), set(few) <= set(choose_shots(np.array([0, 10]), np.array([10]), liked, Protocol(shots=8)))
        (2, True)
    """
    if protocol.shots is None and protocol.train_share is None and context is None:
        return None
    owner = np.repeat(np.arange(len(train_end)), np.diff(start))
    place = np.arange(len(owner))
    # A user's first event is asked for only where data of single cases says so: a request alone is a prompt.
    asked = place > start[owner] if context is None else ~context
    target = place[asked & (place < train_end[owner])]
    wanted = protocol.shots
    if protocol.train_share is not None:
        wanted = max(1, round(protocol.train_share * len(target)))
    if wanted is None:
        return target
    if protocol.shots is not None and protocol.shots > len(target):
        raise InputError(f"protocol.shots is {protocol.shots}, and there are only {len(target)} training examples")
    key = generator(protocol.seed, "shots").random_raw(len(owner))[target]
    quantile = np.empty(len(target))
    for label in (False, True):
        mine = np.flatnonzero(liked[target] == label)
        order = mine[np.argsort(key[mine], kind="stable")]
        quantile[order] = (np.arange(len(order)) + 0.5) / max(1, len(order))
    return np.sort(target[np.lexsort((key, quantile))[:wanted]])
