"""Recommenders as LightningModules, one file for each. The names exported here are the names used in configs."""

import datamodules.contract.compat.bitsandbytes  # noqa: F401  # before PEFT, which imports bitsandbytes
from recmodels.baselines.bert4rec import BERT4Rec
from recmodels.baselines.bm25 import BM25
from recmodels.baselines.bpr import BPR
from recmodels.baselines.ease import EASE
from recmodels.baselines.item_knn import ItemKNN
from recmodels.baselines.pure_svd import PureSVD
from recmodels.baselines.sasrec import SASRec
from recmodels.baselines.sentence_encoder import SentenceEncoder
from recmodels.baselines.simple import NextId, Popularity, Random
from recmodels.methods.adalora import AdaLoRATuning
from recmodels.methods.adapter import AdapterTuning
from recmodels.methods.full import FullTuning
from recmodels.methods.lora import LoRATuning
from recmodels.methods.partial import PartialTuning
from recmodels.methods.peft import PeftTuning
from recmodels.methods.prefix import PrefixTuning
from recmodels.methods.token_classification import TokenClassification
from recmodels.methods.zero_shot import ZeroShot

__all__ = [  # noqa: RUF022  # plain order, as the tests hold it
    "AdaLoRATuning",
    "AdapterTuning",
    "BERT4Rec",
    "BM25",
    "BPR",
    "EASE",
    "FullTuning",
    "ItemKNN",
    "LoRATuning",
    "NextId",
    "PartialTuning",
    "PeftTuning",
    "Popularity",
    "PrefixTuning",
    "PureSVD",
    "Random",
    "SASRec",
    "SentenceEncoder",
    "TokenClassification",
    "ZeroShot",
]
