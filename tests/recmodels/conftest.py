"""Backbones that several files of tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recmodels.backbones.causal import CausalBackbone, load_causal
from tests.recmodels.backbones.families import family_folders
from tests.recmodels.oracle import KINDS, tuned


@pytest.fixture(scope="module")
def folder_of(tiny_causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes folders of tiny random models with the tiny tokenizer."""
    return family_folders(tiny_causal, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def backbones(tiny_causal: Path) -> dict[str, CausalBackbone]:
    """The tiny causal model, plain and tuned in every way of `KINDS`."""
    plain = load_causal(str(tiny_causal), "float32")
    plain.model.eval()
    return {"plain": plain} | {kind: tuned(kind, tiny_causal).backbone for kind in KINDS[1:]}
