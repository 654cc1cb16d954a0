"""The state of every random generator of a process, as plain values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of python's, numpy's and torch's generators, on the CPU and on every CUDA device in use.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(3), random.random(), np.random.rand()
        >>> set_random_state(state)
        >>> second = torch.rand(3), random.random(), np.random.rand()
        >>> torch.equal(first[0], second[0]), first[1:] == second[1:]
        (True, True)
    """
    version, words, gauss = random.getstate()
    kept = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator is what libraries draw from
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "bit_generator": kept["bit_generator"],
            "key": kept["state"]["key"].tolist(),
            "pos": int(kept["state"]["pos"]),
            "has_gauss": int(kept["has_gauss"]),
            "gauss": float(kept["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts a state back that `random_state` took.

    Args:
        state: on the CPU.
    """
    python, kept = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": kept["bit_generator"],
            "state": {"key": np.array(kept["key"], dtype=np.uint32), "pos": kept["pos"]},
            "has_gauss": kept["has_gauss"],
            "gauss": kept["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
