"""What predictions are judged by, as scikit-learn, SciPy and seqeval compute it. N examples.

The libraries are imported when they are needed: they take a second, and `bench` mostly does
without.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[Any], NDArray[Any]], float]


def accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the fraction of right predictions; of several labels each, all must be right."""
    return float(np.mean((predicted == labels).reshape(len(labels), -1).all(axis=1)))


def f1(predicted: NDArray[Any], labels: NDArray[Any], average: str = "binary") -> float:
    """Return F1, in [0, 1].

    Args:
        predicted: (N,) labels, or (N, C) of 0 and 1.
        labels: Likewise.
        average: `binary`: of label 1; `macro`: the mean over labels; `micro`: of all decisions.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average=average, zero_division=0))


def matthews(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the correlation of labels (N,), in [-1, 1]; 0 where one side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the correlation of numbers (N,), in [-1, 1]; 0 where one side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _is_constant(a) or _is_constant(b) else float(pearsonr(a, b).statistic)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the correlation of ranks of numbers (N,), in [-1, 1]; 0 where one is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(a) or _is_constant(b) else float(spearmanr(a, b).statistic)


def entities(
    predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compute `f1`, `precision` and `recall` of whole entities as conlleval does, in [0, 1].

    Args:
        predicted: The tags of N texts' words, such as B-PER, I-PER, O.
        labels: As many.
    """
    from seqeval import metrics

    scores: Mapping[str, Any] = {
        "f1": metrics.f1_score,
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
    }
    return {name: float(of(labels, predicted, zero_division=0)) for name, of in scores.items()}


def _is_constant(values: NDArray[Any]) -> bool:
    return bool(np.all(values == values[0]))


OF_LABELS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": lambda predicted, labels: f1(predicted, labels, "macro"),
    "f1_micro": lambda predicted, labels: f1(predicted, labels, "micro"),
    "mcc": matthews,
}
OF_NUMBERS: dict[str, Metric] = {"pearson": pearson, "spearman": spearman}
