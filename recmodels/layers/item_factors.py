"""What users' events alone say of items: factors of who chose what.

# U users, I items, E events, K factors
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.contract.batch import EventBatch


def item_factors(events: EventBatch, factors: int, normalised: bool = True) -> Tensor:
    """Factors items by the truncated singular value decomposition of the user-item matrix.

    The right singular vectors, so that items chosen by the same users point the same way (PureSVD: Cremonesi et al. 2010,
    doi:10.1145/1864708.1864721).

    Args:
        events: an item that a user chose several times counts once.
        factors: K; columns beyond the matrix's own are zero.
        normalised: divide each entry by the roots of its user's and its item's number of entries, so that neither
            long histories nor popular items take the first factors.

    Returns:
        `[I, K]`, the strongest first; zeros for an item without events.

    Example:
        >>> events = EventBatch(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), users=2, items=4)
        >>> made = item_factors(events, 2)
        >>> (made @ made.T).abs().round(decimals=1).tolist()[0]
        [0.5, 0.5, 0.0, 0.0]
    """
    pair = torch.stack([events.user, events.item]).unique(dim=1)
    user, item = pair
    value = torch.ones(pair.shape[1])
    if normalised:
        value = (torch.bincount(user)[user] * torch.bincount(item)[item]).rsqrt()
    matrix = torch.sparse_coo_tensor(pair, value, (events.users, events.items), check_invariants=False)
    width = min(factors, events.users, events.items)
    with torch.random.fork_rng(devices=[]):  # the search starts at random, and must not move the run's own draws
        torch.manual_seed(0)
        wider = min(2 * width + 8, events.users, events.items)
        _, _, vectors = torch.svd_lowrank(matrix, q=wider, niter=8)
    return torch.nn.functional.pad(vectors[:, :width], (0, factors - width))
