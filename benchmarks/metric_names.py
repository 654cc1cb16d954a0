"""Names, definitions and labels of metrics, as tables print them."""

from __future__ import annotations

import re

DEFINITIONS = {
    "hr": "1 if any relevant item has rank at most k, else 0 (higher is better)",
    "recall": "relevant items with rank at most k, divided by all relevant items (higher is better)",
    "precision": "relevant items with rank at most k, divided by k (higher is better)",
    "ndcg": "sum of gain / log2(rank + 1) over rank at most k, divided by the best one (higher is better)",
    "mrr": "1 / rank of the best relevant item, 0 beyond k where k is given (higher is better)",
    "map": "mean over the relevant items of the precision at their rank, 0 beyond k (higher is better)",
    "auc": "chance that a positive scores above a negative, ties counted half (higher is better)",
    "uauc": "plain mean of the AUC per user, users with one class left out (higher is better)",
    "log_loss": "mean of -ln of the probability given to the true label (lower is better)",
    "brier": "mean squared distance of probability and label (lower is better)",
    "ece": "expected calibration error over reliability bins (lower is better)",
    "rmse": "root of the mean squared error of the predicted rating (lower is better)",
    "mse": "mean squared error of the predicted rating (lower is better)",
    "mae": "mean absolute error of the predicted rating (lower is better)",
    "tie_rate": "share of users with two candidates of equal score (lower is better)",
}


def metric_label(name: str) -> str:
    """A metric's name as printed.

    Example:
        >>> metric_label("hr@5"), metric_label("log_loss")
        ('HR@5', 'log-loss')
    """
    words = {"log_loss": "log-loss", "tie_rate": "tie rate", "brier": "Brier"}
    return words.get(name, name.upper() if metric_base(name) in DEFINITIONS else name)


def metric_base(name: str) -> str:
    """A metric's name without its cut-off.

    Example:
        >>> metric_base("ndcg@10")
        'ndcg'
    """
    return name.split("@")[0]


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better, by its definition; stages such as `val/` are ignored.

    Example:
        >>> higher_is_better("ndcg@10"), higher_is_better("val/rmse"), higher_is_better("quality")
        (True, False, True)
    """
    return "lower is better" not in DEFINITIONS.get(metric_base(name.rpartition("/")[2]), "")


def fraction(value: float, digits: int = 4, signed: bool = False) -> str:
    """A number with fixed decimals and no zero before the point.

    Example:
        >>> fraction(0.412), fraction(-0.03, signed=True), fraction(1.0), fraction(-0.00001)
        ('.4120', '-.0300', '1.0000', '.0000')
    """
    value = round(value, digits) + 0.0  # no "-.0000"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text)
