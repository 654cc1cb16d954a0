"""What tuning minimises, one file for each objective. The names exported here are the names used in configs."""

from typing import Literal

from recmodels.objectives.base import Objective
from recmodels.objectives.catalogue_likelihood import CatalogueLikelihood
from recmodels.objectives.causal_effect import CausalEffect
from recmodels.objectives.contrastive import Contrastive
from recmodels.objectives.dmpo import DMPO
from recmodels.objectives.dpo import DPO
from recmodels.objectives.likelihood import Likelihood
from recmodels.objectives.listwise import Listwise
from recmodels.objectives.rating import Rating
from recmodels.objectives.simpo import SimPO
from recmodels.objectives.softmax_dpo import SoftmaxDPO
from recmodels.objectives.yes_no import YesNo

__all__ = [
    "DMPO",
    "DPO",
    "CatalogueLikelihood",
    "CausalEffect",
    "Contrastive",
    "Likelihood",
    "Listwise",
    "Rating",
    "SimPO",
    "SoftmaxDPO",
    "YesNo",
]

ObjectiveName = Literal["likelihood", "listwise", "yes_no", "rating"]
"""Release 0.1's names, each of the class with its default options."""


def objective_named(objective: Objective | ObjectiveName) -> Objective:
    """Returns an objective as it is, and the one that an old name means.

    Example:
        >>> type(objective_named("yes_no")).__name__
        'YesNo'
    """
    old: dict[str, type[Objective]] = {
        "likelihood": Likelihood,
        "listwise": Listwise,
        "yes_no": YesNo,
        "rating": Rating,
    }
    return objective if isinstance(objective, Objective) else old[objective]()
