"""Recommenders as LightningModules, one file for each. The names exported here are the names used in configs."""

from recmodels.adalora import AdaLoRATuning
from recmodels.adapter import AdapterTuning
from recmodels.bert4rec import BERT4Rec
from recmodels.bm25 import BM25
from recmodels.bpr import BPR
from recmodels.ease import EASE
from recmodels.full import FullTuning
from recmodels.item_knn import ItemKNN
from recmodels.lora import LoRATuning
from recmodels.next_id import NextId
from recmodels.partial import PartialTuning
from recmodels.peft import PeftTuning
from recmodels.popularity import Popularity
from recmodels.prefix import PrefixTuning
from recmodels.random import Random
from recmodels.sasrec import SASRec
from recmodels.sentence_encoder import SentenceEncoder
from recmodels.token_classification import TokenClassification
from recmodels.zero_shot import ZeroShot

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
    "Random",
    "SASRec",
    "SentenceEncoder",
    "TokenClassification",
    "ZeroShot",
]
