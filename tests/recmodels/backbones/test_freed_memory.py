"""Large blocks that are freed come back without new pages, unless somebody says otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from recmodels.backbones.loading import keep_freed_memory

COUNT = """
import resource, torch
from recmodels.backbones.loading import keep_freed_memory
told = keep_freed_memory()
for _ in range(2):
    torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.zeros(2**24)
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

only_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or torch.cuda.is_available(),
    reason="speaks to the GNU C library, on a machine without a GPU",
)


def counted(**variables: str) -> tuple[int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    made = subprocess.run(
        [sys.executable, "-c", COUNT], env=clean | variables, capture_output=True, text=True, check=True
    )
    told, faults = made.stdout.split()
    return int(told), int(faults)


@only_glibc
def test_a_freed_block_is_used_again_page_by_page() -> None:
    told, faults = counted()
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert told
    assert faults < pages / 100


@only_glibc
def test_an_environment_that_says_how_to_allocate_is_left_alone() -> None:
    assert counted(MALLOC_ARENA_MAX="4")[0] == 0


def test_where_there_is_a_gpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not keep_freed_memory()
