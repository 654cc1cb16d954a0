"""Several instructions in one training: which one a user's windows have in an epoch.

The choice is a function of seed, epoch and user alone. It has no state, so a continued run, another number of worker
processes or of GPUs, and another order of the data all train on the same prompts.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from datamodules.contract.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """Shares of wordings.

    Attributes:
        bounds: ascending, the last one 1: wording i is chosen between bounds i - 1 and i.
        seed: of the choice.

    Example:
        >>> from collections import Counter
        >>> mixture = Mixture((0.25, 1.0), seed=0)
        >>> counts = Counter(mixture.of(str(user), epoch=0) for user in range(1000))
        >>> 200 < counts[0] < 300, mixture.of("7", 3) == Mixture((0.25, 1.0), seed=0).of("7", 3)
        (True, True)
    """

    bounds: tuple[float, ...]
    seed: int

    def of(self, user: str, epoch: int) -> int:
        """Number of the wording of a user's windows in an epoch."""
        digest = hashlib.blake2b(f"{self.seed}\0{epoch}\0{user}".encode(), digest_size=8).digest()
        # Below 1 exactly: 53 bits fit a float.
        return bisect_right(self.bounds, (int.from_bytes(digest, "big") >> 11) / 2**53)


def shares(weights: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """Shares that add up to one, of weights to the power of 1 / temperature.

    A temperature of 1 keeps the weights' proportions, a large one levels them (as T5 mixes its tasks, arXiv
    1910.10683).

    Raises:
        InputError: a weight is not above 0, there is none, or the temperature is not above 0.

    Example:
        >>> shares({"a": 1, "b": 3}), {k: round(v, 3) for k, v in shares({"a": 1, "b": 3}, 2.0).items()}
        ({'a': 0.25, 'b': 0.75}, {'a': 0.366, 'b': 0.634})
    """
    if not temperature > 0:
        raise InputError(f"data.temperature is {temperature}, must be above 0")
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise InputError(f"data.mixture: the weight of {name} is {weight}, must be a number above 0")
    if not weights:
        raise InputError("data.mixture is empty; leave it out to train on one cell")
    largest = max(weights.values())
    raised = {name: (weight / largest) ** (1 / temperature) for name, weight in weights.items()}
    return {name: value / sum(raised.values()) for name, value in raised.items()}


def mixture_of(parts: Mapping[str, float], seed: int) -> Mixture:
    """The mixture of shares in their order.

    Example:
        >>> mixture_of({"a": 0.25, "b": 0.75}, 0).bounds
        (0.25, 1.0)
    """
    bounds = list(accumulate(parts.values()))
    return Mixture((*bounds[:-1], 1.0), seed)
