"""Recommenders as LightningModules, one file for each. The names exported here are the names used in configs."""

from recmodels.adalora import AdaLoRATuning
from recmodels.adapter import AdapterTuning
from recmodels.full import FullTuning
from recmodels.lora import LoRATuning
from recmodels.partial import PartialTuning
from recmodels.peft import PeftTuning
from recmodels.popularity import Popularity
from recmodels.prefix import PrefixTuning
from recmodels.random import Random
from recmodels.token_classification import TokenClassification
from recmodels.zero_shot import ZeroShot

__all__ = [
    "AdaLoRATuning",
    "AdapterTuning",
    "FullTuning",
    "LoRATuning",
    "PartialTuning",
    "PeftTuning",
    "Popularity",
    "PrefixTuning",
    "Random",
    "TokenClassification",
    "ZeroShot",
]
