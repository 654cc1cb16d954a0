"""A module that one part of a network uses and another owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Reference(Generic[T]):
    """Holds a module whose parameters are counted, moved and saved elsewhere, so that torch does not register it here.

    Attributes:
        module: the module.

    Example:
        >>> from torch import nn
        >>> user = nn.Module()
        >>> user.owner = Reference(nn.Linear(2, 2))
        >>> list(user.parameters())
        []
    """

    module: T
