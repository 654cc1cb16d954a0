"""Random bits keyed by names: numpy's raw PCG64 output for many keys at once, bit for bit.

Raw PCG64 output is stable across numpy versions and machines; derived draws (`choice`, `permutation`) are not. Making one
`numpy.random.PCG64` a user costs more than everything else in drawing candidates, so seeding and stepping are done here
on columns. Source: `SeedSequence` and PCG64 XSL-RR of numpy; O'Neill, PCG (2014), https://www.pcg-random.org.

# K keys, N draws
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Words = NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341  # PCG64's


def key_digests(seed: int, names: Sequence[str], *before: str) -> Words:
    """`[K, 4]` 128-bit keys as little-endian words, one for each name.

    Example:
        >>> key_digests(42, ["ann", "bob"], "candidates").shape
        (2, 4)
    """
    head = "\0".join([str(seed), *before]) + "\0"
    raw = b"".join([hashlib.sha256((head + name).encode()).digest()[15::-1] for name in names])
    return np.frombuffer(raw, dtype="<u4").reshape(-1, 4).astype(np.uint32)


def generator(seed: int, *names: str) -> np.random.PCG64:
    """The generator of one key as numpy makes it; `Streams` gives the same bits.

    Example:
        >>> one, many = generator(42, "candidates", "ann"), Streams(key_digests(42, ["ann", "bob"], "candidates"))
        >>> bool((many.draw(5)[0] == one.random_raw(5)).all())
        True
    """
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.PCG64(int.from_bytes(digest[:16], "big"))


class Streams:
    """One PCG64 generator for each key.

    Args:
        keys: `[K, 4]` words, as `key_digests` gives them.
    """

    def __init__(self, keys: Words) -> None:
        words = _seed_state(keys)
        pairs = [words[:, 2 * i].astype(np.uint64) | (words[:, 2 * i + 1].astype(np.uint64) << _HALF) for i in range(4)]
        one = np.uint64(1)
        self._step = (pairs[2] << one | pairs[3] >> np.uint64(63), pairs[3] << one | one)
        state = self._step  # a first step from zero
        state = _add(state, (pairs[0], pairs[1]))
        self._state = _add(_multiply(state, _halves(_MULTIPLIER)), self._step)

    def draw(self, count: int) -> Bits:
        """`[K, N]` the next raw outputs of every generator."""
        drawn = np.empty((len(self._state[0]), count), dtype=np.uint64)
        step = _halves(_MULTIPLIER)
        for column in range(count):
            self._state = _add(_multiply(self._state, step), self._step)
            high, low = self._state
            value, turn = high ^ low, high >> np.uint64(58)
            drawn[:, column] = value >> turn | value << (-turn.astype(np.int64) & 63).astype(np.uint64)
        return drawn

    def skip(self, count: int) -> None:
        """Leaves out the next raw outputs, in one step whatever their number."""
        multiplier, increment = 1, 0  # of `count` steps in one: state * multiplier + step * increment
        for _ in range(count):
            multiplier, increment = multiplier * _MULTIPLIER % 2**128, (increment * _MULTIPLIER + 1) % 2**128
        self._state = _add(_multiply(self._state, _halves(multiplier)), _multiply(self._step, _halves(increment)))


def _halves(number: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(number >> 64), np.uint64(number & (2**64 - 1))


@np.errstate(over="ignore")
def _add(a: tuple[Bits, Bits], b: tuple[Bits, Bits]) -> tuple[Bits, Bits]:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]).astype(np.uint64), low


@np.errstate(over="ignore")  # a product that wraps is meant; numpy warns of single numbers only
def _multiply(a: tuple[Bits, Bits], b: tuple[np.uint64, np.uint64]) -> tuple[Bits, Bits]:
    """The product modulo 2^128, by halves of 32 bits."""
    a1, a0, b1, b0 = a[1] >> _HALF, a[1] & _LOW, b[1] >> _HALF, b[1] & _LOW
    mid = a1 * b0 + (a0 * b0 >> _HALF)
    other = a0 * b1 + (mid & _LOW)
    high = a1 * b1 + (mid >> _HALF) + (other >> _HALF)
    return high + a[0] * b[1] + a[1] * b[0], a[1] * b[1]


def _seed_state(keys: Words) -> Words:
    """`[K, 8]` words of `numpy.random.SeedSequence(key).generate_state(8)`."""
    shift, constant = np.uint32(16), 0x43B0D7E5
    pool = [keys[:, i].copy() for i in range(4)]

    def hashed(value: Words, factor: int) -> Words:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * factor & 0xFFFFFFFF
        value = value * np.uint32(constant)
        return value ^ value >> shift

    pool = [hashed(word, 0x931E8875) for word in pool]
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * hashed(pool[source], 0x931E8875)
                pool[target] = mixed ^ mixed >> shift
    constant = 0x8B51F9DD
    return np.stack([hashed(pool[i % 4], 0x58F38DED) for i in range(8)], axis=1)
