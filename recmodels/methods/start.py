"""Where tuning starts: at the untuned scores, where a method promises it, or at the weights of an earlier run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.contract.batch import BranchBatch
from datamodules.contract.checkpoints import checksum_parameters, read_checkpoint
from datamodules.contract.errors import InputError
from datamodules.contract.files import sha256_of
from datamodules.contract.findings import Ancestor
from recmodels.backbones.base import Backbone, evaluating
from recmodels.base import IdentityError, Recommender

BELOW = "FullTuning"
"""The method whose runs any other can start from: what it trains is the backbone."""


def identity_difference(method: str, tuned: Tensor, untuned: Tensor) -> float:
    """Returns the largest difference of a probe of the tuned backbone from one of the untuned.

    Raises:
        IdentityError: they differ, though the method promises that they do not.
    """
    difference = float((tuned - untuned).abs().max())
    if not difference <= 1e-5 * max(1.0, float(untuned.abs().max())):
        raise IdentityError(f"{method} promises the untuned scores at first; they differ by {difference:.3g}")
    return difference


class StartingWeights:
    """The weights that train, as they were before training: what preference losses compare with.

    Scores under them come out of the same trees, whatever the tuning method; full tuning keeps a second copy.

    Args:
        trained: parameters by name.
    """

    def __init__(self, trained: dict[str, nn.Parameter]) -> None:
        self.values = {name: value.detach().clone() for name, value in trained.items()}

    @contextmanager
    def put_in(self, trained: dict[str, nn.Parameter]) -> Iterator[None]:
        """While it lasts, parameters have the values that they had at first."""
        tuned = {name: value.data for name, value in trained.items()}
        for name, value in trained.items():
            self.values[name] = self.values[name].to(value.device)
            value.data = self.values[name]
        try:
            yield
        finally:
            for name, value in trained.items():
                value.data = tuned[name]

    @torch.no_grad()
    def log_likelihood(self, backbone: Any, batch: BranchBatch, trained: dict[str, nn.Parameter]) -> Tensor:
        """Returns the summed log-probability `[B]` of each branch's tokens, without dropout."""
        with evaluating(backbone.model), self.put_in(trained):
            value: Tensor = backbone.log_likelihood(batch)
        return value


def stands_on_run(model: Recommender) -> bool:
    """Whether a model tunes weights that an earlier run has changed, not those of the backbone by its name."""
    return any(each["model"] != type(model).__name__ for each in model.findings.get("lineage", []))


@dataclass(frozen=True)
class EarlierRun:
    """The checkpoint of a run that another starts from.

    Attributes:
        source: as the user named it.
        start_of: class of the model that starts from it.
        path: of the checkpoint.
        content: of it, tensors mapped from the file.
    """

    source: str
    start_of: str
    path: Path
    content: dict[str, Any]

    @property
    def method(self) -> str:
        """Class of its model."""
        return str((self.content.get("instructrec") or {}).get("model"))

    @property
    def is_below(self) -> bool:
        """Whether what it trained is the backbone, which another method then tunes."""
        return self.method != self.start_of

    def put_below(self, backbone: Backbone) -> None:
        """Gives a backbone the weights of a run of `FullTuning`, for another method to stand on.

        Raises:
            InputError: they are of another backbone.
        """
        own = dict(backbone.model.named_parameters())
        state = {name.removeprefix("network."): value for name, value in self.content["state_dict"].items()}
        odd = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
        if odd:
            raise InputError(f"model.init_from {self.source}: its {odd[0]} does not fit backbone {backbone.name!r}")
        exact = all(value.dtype == torch.float32 for value in own.values())  # otherwise another sum
        base = self.content["instructrec"]["base_checksum"]
        if exact and base != (found := checksum_parameters(own.items())):
            raise InputError(
                f"model.init_from {self.source}: it was tuned from backbone weights {base[:12]}, the configured ones are"
                f" {found[:12]}; use its run's model.backbone"
            )
        backbone.model.load_state_dict(state, strict=False)

    def put_into(self, model: Recommender) -> list[Ancestor]:
        """Gives a model what a run of the same method has trained; returns the runs that led here, the first one first.

        Raises:
            InputError: it was tuned with other options, or from another backbone.
        """
        if not self.is_below:
            try:
                model.on_load_checkpoint(self.content)
            except InputError as error:
                raise InputError(f"model.init_from {self.source}: {error}") from error
            model.load_state_dict(self.content["state_dict"], strict=False)
        folder = self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path
        steps = int(self.content.get("global_step") or 0)
        mine = Ancestor(run=folder.resolve().name, model=self.method, steps=steps, sha256=sha256_of(self.path))
        return [*self.content["instructrec"].get("lineage", []), mine]


def earlier_run(source: str | None, start_of: str, *, needed: bool) -> EarlierRun | None:
    """Reads the run that another starts from; None where there is none, or where nobody needs one that is gone.

    Args:
        source: its folder, or a checkpoint.
        start_of: class of the model that starts from it.
        needed: whether training is to begin, rather than a checkpoint to be loaded.

    Raises:
        InputError: it is not there, no run of instructrec, or of a method from which this one cannot start.
    """
    if source is None:
        return None
    path = Path(os.path.expanduser(source))
    found = [path, *(path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))]
    file = next((each for each in found if each.is_file()), None)
    if file is None and not needed:
        return None
    if file is None:
        there = "holds no checkpoints/best.ckpt" if path.exists() else "is not there"
        raise InputError(f"model.init_from takes the folder of a run or a checkpoint; {source} {there}")
    run = EarlierRun(source, start_of, file, read_checkpoint(file, mmap=True))
    if run.method == "None":
        raise InputError(f"model.init_from {source}: the checkpoint was not written by instructrec")
    if run.is_below and run.method != BELOW:
        raise InputError(
            f"model.init_from {source}: it is of {run.method}, and {start_of} starts from runs of its own or of {BELOW};"
            f" `instructrec export {file} --merge --out FOLDER` and --model.backbone FOLDER"
        )
    return run if needed or run.is_below else None  # a checkpoint brings all that a method of its own trained
