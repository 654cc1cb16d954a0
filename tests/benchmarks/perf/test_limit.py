from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.perf.limit import Sizes, counts_of, matrix_rate, needed_flops, sizes_of
from benchmarks.perf.profiling import group_of, group_times
from benchmarks.perf.setting import Setting
from benchmarks.perf.training import OurTraining
from recmodels.engine.prompt_tree import tree_mask
from recmodels.layers.fused import LowRankLinear


@pytest.fixture
def setting(mini_data: Path, tiny_causal: Path) -> Setting:
    made = Setting(backbone=str(tiny_causal), threads=1, repetitions=1, history=4, quick=True)
    made.apply()
    return made


def test_counts_are_those_of_the_attention_mask(setting: Setting) -> None:
    side = OurTraining(setting, "windows")
    (batch,) = side.loader(0)
    counts = counts_of([batch])
    assert counts["tokens"] == batch.token.numel()
    assert counts["pairs"] == int(tree_mask(batch.end[None]).sum())
    assert counts["places"] == len(set(batch.label_place.tolist()))


@pytest.mark.parametrize("passes", ["score", "adapters"])
def test_flops_are_those_that_torch_counts(setting: Setting, passes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch counts no addmm_, so adapters go PEFT's own way here.
    monkeypatch.setattr(LowRankLinear, "_is_plain", lambda *_: False)
    side = OurTraining(setting, "windows")
    (batch,) = side.loader(0)
    model = side.model.float()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(passes != "score"):
        scores = model(batch)
        if passes != "score":
            scores.sum().backward()
    # Products of batches of matrices are attention, which is counted apart.
    counted = sum(v for k, v in counter.get_flop_counts()["Global"].items() if str(k) in ("aten.mm", "aten.addmm"))
    sizes, counts = sizes_of(model.backbone), counts_of([batch])
    places = counts["places"]
    if passes != "score":
        places = -(-places // 16) * 16  # for gradients the engine fills the head's rows up
    needed = needed_flops(sizes, passes, counts["tokens"], places, pairs=0)
    if passes == "score":
        assert counted == needed
    else:  # the gradient of the first block's input is needed by nobody
        assert needed * 0.75 < counted <= needed


def test_attention_counts_pairs_only() -> None:
    sizes = Sizes(linear=0, adapters=0, head=0, attention=6)
    assert needed_flops(sizes, "score", 10, 10, pairs=7) == 4 * 6 * 7
    assert needed_flops(sizes, "full", 10, 10, pairs=7) == 3 * 4 * 6 * 7


def test_full_tuning_needs_three_passes_over_every_weight() -> None:
    sizes = Sizes(linear=100, adapters=0, head=50, attention=0)
    assert needed_flops(sizes, "full", 4, 2, 0) == 3 * (2 * 100 * 4 + 2 * 50 * 2)


def test_the_matrix_rate_names_the_shape_that_reached_it(setting: Setting) -> None:
    rate = matrix_rate(setting, [(32, 48), (48, 32)])
    assert rate["flops_per_second"] > 0
    assert tuple(rate["rows_inputs_outputs"][1:]) in {(32, 48), (48, 32)}


def event(name: str, shapes: Any = (), parent: Any = None) -> Any:
    return SimpleNamespace(name=name, input_shapes=shapes, cpu_parent=parent)


@pytest.mark.parametrize(
    ("made", "group"),
    [
        (event("aten::mm", [[5, 8], [8, 8]]), "matmul"),
        (event("aten::mm", [[5, 8], [8, 99]]), "head + loss"),
        (event("aten::exp", [[5, 99]]), "head + loss"),
        (event("aten::embedding", [[99, 8], [5]]), "elementwise + norm"),
        (event("aten::bmm", [[2, 5, 8], [2, 8, 5]]), "attention"),
        (event("aten::_scaled_dot_product_flash_attention_for_cpu"), "attention"),
        (event("aten::_softmax", [[2, 5, 5]]), "attention"),
        (event("aten::silu"), "elementwise + norm"),
        (event("aten::copy_"), "cast + copy"),
        (event("aten::add_", [[1, 2, 5, 5], [5, 5]]), "attention"),
        (event("aten::add_", [[5, 8], [5, 8]]), "elementwise + norm"),
        (event("aten::addcdiv_"), "optimiser"),
        (event("aten::mul_", [[8, 8]], event("Optimizer.step#AdamW.step")), "optimiser"),
        (
            event("aten::mul_", [[5, 8]], event("_LowRank", (), event("Optimizer.step#AdamW.step"))),
            "elementwise + norm",
        ),
        (event("aten::addmm_", [[5, 8], [5, 2], [2, 8]], event("_LowRank")), "matmul"),
        (event("aten::_foreach_norm"), "optimiser"),
        (event("aten::mm", [[5, 8], [8, 8]], event("Optimizer.step#AdamW.step")), "matmul"),  # Lightning's closure
        (event("aten::stack", (), event("enumerate(DataLoader)#_SingleProcess.__next__")), "data"),
        (event("autograd::engine::evaluate_function: MmBackward0"), None),
    ],
)
def test_operators_have_groups(made: Any, group: str | None) -> None:
    assert group_of(made, vocabulary=99) == group


def test_groups_add_up_to_the_time_of_the_step(setting: Setting) -> None:
    side = OurTraining(setting, "windows")
    side.turn(0)
    taken: list[float] = []

    def work() -> Any:
        turn = side.turn(1)
        taken.append(turn.seconds)
        return turn

    groups = group_times(setting, work, vocabulary=side.model.backbone.model.config.vocab_size)
    assert sum(groups.values()) == pytest.approx(taken[0], rel=1e-6)
    for name in ("matmul", "attention", "elementwise + norm", "head + loss", "optimiser"):
        assert groups[name] > 0, name
