"""Where a step's time goes, by kind of operator, from torch's own profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch.profiler import ProfilerActivity, profile

from benchmarks.perf.setting import Setting

GROUPS = ("matmul", "attention", "elementwise + norm", "cast + copy", "head + loss", "optimiser", "data", "python")
"""The last is the time in which no operator ran: Python, dispatch, Lightning."""

COPIES = ("copy", "_to_copy", "clone", "contiguous", "cat", "fill_", "zero", "index_select", "pad", "stack", "gather")

UPDATES = ("lerp_", "addcmul_", "addcdiv_", "sqrt", "mul_", "linalg_vector_norm")
"""What clipping and AdamW do."""


class ProfilerEvent(Protocol):
    """What is read of a profiler's event."""

    name: str
    input_shapes: Any
    cpu_parent: Any


def group_of(event: ProfilerEvent, vocabulary: int) -> str | None:
    """The group of an operator, or None for a range that only encloses others.

    Attention is what works on batches of matrices or is fused; other matrix products are linear layers. Whatever has
    an axis as long as the vocabulary belongs to the head and the loss.
    """
    names = [event.name]
    above = event.cpu_parent
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    if any("enumerate(DataLoader)" in name for name in names):
        return "data"
    if not event.name.startswith("aten::"):
        return None
    operator = event.name.removeprefix("aten::")
    # Lightning runs forward and backward inside the optimiser's step; backward operators, and those of our own
    # autograd functions, stand in a range of theirs.
    around = next((name for name in names if not name.startswith("aten::")), "Optimizer")
    if operator.startswith(("_foreach_", "_fused_adam")) or (operator in UPDATES and around.startswith("Optimizer")):
        return "optimiser"
    shapes = [shape for shape in event.input_shapes or () if isinstance(shape, list | tuple)]
    wide = any(vocabulary in shape for shape in shapes)
    if wide and not operator.startswith(("embedding", "index")):
        return "head + loss"
    masked = operator == "add_" and bool(shapes) and len(shapes[0]) == 4  # the mask onto the scores
    if masked or any(mark in operator for mark in ("scaled_dot_product", "bmm", "softmax", "flash_attention")):
        return "attention"
    if operator in ("mm", "addmm", "addmm_", "linear", "matmul", "mkldnn_linear", "_addmm_activation"):
        return "matmul"
    return "cast + copy" if any(operator.startswith(copy) for copy in COPIES) else "elementwise + norm"


def summed(events: Iterable[Any], vocabulary: int, *, cuda: bool) -> dict[str, float]:
    """Seconds of each group, each event's own time only."""
    total = dict.fromkeys(GROUPS, 0.0)
    for event in events:
        group = group_of(event, vocabulary)
        if group is not None:
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            total[group] += time / 1e6
    return total


def group_times(setting: Setting, work: Callable[[], Any], vocabulary: int) -> dict[str, float]:
    """Profiles one turn of work.

    Args:
        setting: of the run; on CUDA the kernels' times are summed.
        work: called twice: once as it is, for its own time, and once profiled, for the shares.
        vocabulary: size of the model's.

    Returns:
        Seconds by group, which add up to the unprofiled time of the timed part.
    """
    turn = work()
    cuda = setting.device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds, record_shapes=True, acc_events=True) as recorded:
        work()
    total = summed(recorded.events(), vocabulary, cuda=cuda)
    busy = sum(total.values())
    shrink = min(1.0, turn.seconds / max(busy, 1e-12))  # the profiler slows operators a little
    shares = {group: seconds * shrink for group, seconds in total.items()}
    return shares | {"python": max(0.0, turn.seconds - busy)}
