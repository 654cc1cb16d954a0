"""On a CPU, memory that one step frees stays with the process for the next.

The GNU C library hands blocks of more than 32 MB, and a long free end of the heap, back to the kernel at once, and every
step then pays for each of their pages again: for full tuning, whose gradients are as long as the weights, a tenth of a
step (SmolLM2-135M, bfloat16, two cores).
"""

from __future__ import annotations

import ctypes
import os

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
NEVER, LARGEST = -1, 2**30


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, and whether it was told.

    Nothing is changed where there is a GPU, whose memory torch keeps by itself, where the C library is another one, or
    where the environment says how to allocate (`MALLOC_...`, `GLIBC_TUNABLES`).

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {"MALLOC_TRIM_THRESHOLD_": "0"}):
        ...     keep_freed_memory()
        False
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or torch.cuda.is_available() or os.name != "posix":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST)) and bool(set_option(TRIM_THRESHOLD, NEVER))
