"""Observers of training and testing. The names exported here are the names used in configs."""

from callbacks.cost_meter import CostMeter
from callbacks.history_effect import HistoryEffect
from callbacks.prediction_writer import PredictionWriter
from callbacks.progress_log import ProgressLog
from callbacks.resume import Resume
from callbacks.sample_table import SampleTable
from callbacks.score_log import ScoreLog
from callbacks.time_budget import TimeBudget
from callbacks.training_guard import TrainingGuard
from callbacks.weight_average import WeightAverage

__all__ = [
    "CostMeter",
    "HistoryEffect",
    "PredictionWriter",
    "ProgressLog",
    "Resume",
    "SampleTable",
    "ScoreLog",
    "TimeBudget",
    "TrainingGuard",
    "WeightAverage",
]
