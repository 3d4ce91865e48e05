"""Metrics of a whole data set, which are no means over its examples.

Each is a function of (probabilities, labels, class_names): probabilities float [N, K], the
softmax's, or the sigmoid's where an image has several labels; labels int [N], or float [N, K] then.
It returns a number, or several by name. Evaluation gathers both from all devices and hosts; what is
undefined for the data, such as a class's recall without an example, is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from googlenet_jax.errors import UserError
from googlenet_jax.registry import Registry

SetMetric = Callable[[np.ndarray, np.ndarray, Sequence[str]], float | Mapping[str, float]]
MOST_CONFUSIONS = 20  # classes, whose every pair stands in a line


def balanced_accuracy(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> float:
    """The mean over the classes of the share of their examples that are recognized."""
    return float(np.mean(list(per_class(probabilities, labels, class_names).values())))


def per_class(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """The share of each class's examples that are recognized, by the class's name."""
    hits = probabilities.argmax(1) == _one_label(labels, "per_class")
    return {
        name: float(hits[labels == place].mean())
        for place, name in enumerate(class_names)
        if (labels == place).any()
    }


def macro_f1(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> float:
    """The mean over the classes of F1; several labels count from a probability of ½ on."""
    from sklearn.metrics import f1_score

    if labels.ndim == 2:
        guesses = (probabilities >= 0.5).astype(int)
        return float(f1_score(labels.astype(int), guesses, average="macro", zero_division=0))
    every, guesses = range(len(class_names)), probabilities.argmax(1)
    return float(f1_score(labels, guesses, labels=every, average="macro", zero_division=0))


def auc(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> float:
    """The mean over the classes, each against the rest, of the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return _over_classes(roc_auc_score, probabilities, labels)


def mean_average_precision(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> float:
    """The mean over the classes, each against the rest, of the average precision."""
    from sklearn.metrics import average_precision_score

    return _over_classes(average_precision_score, probabilities, labels)


def _over_classes(
    score: Callable[[np.ndarray, np.ndarray], float], probabilities: np.ndarray, labels: np.ndarray
) -> float:
    """The mean of those classes that some examples have and some have not."""
    count = probabilities.shape[1]
    there = labels >= 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(count)
    mixed = [place for place in range(count) if 0 < there[:, place].sum() < len(there)]
    values = [score(there[:, place], probabilities[:, place]) for place in mixed]
    return float(np.mean(values)) if values else math.nan


def calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], bins: int = 15
) -> float:
    """The expected calibration error (arXiv 1706.04599): confidence − accuracy, in bins."""
    confidence = probabilities.max(1)
    hits = probabilities.argmax(1) == _one_label(labels, "calibration_error")
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def confusion(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """How many examples of each class were taken for each, "CLASS/GUESS", of at most
    MOST_CONFUSIONS classes.
    """
    count = len(class_names)
    if count > MOST_CONFUSIONS:
        raise UserError(
            f"metrics: 'confusion' is of at most {MOST_CONFUSIONS} classes, found {count}; "
            "`googlenet-jax evaluate` draws more"
        )
    pairs = _one_label(labels, "confusion") * count + probabilities.argmax(1)
    counts = np.bincount(pairs, minlength=count**2).reshape(count, count)
    return {
        f"{own}/{guess}": float(counts[row, column])
        for row, own in enumerate(class_names)
        for column, guess in enumerate(class_names)
    }


def _one_label(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.ndim == 2:
        raise UserError(f"metrics: {name!r} takes one label an image, and these data have several")
    return labels


SET_METRICS: Registry[SetMetric] = Registry(
    "set metric",
    {
        "balanced_accuracy": balanced_accuracy,
        "per_class": per_class,
        "macro_f1": macro_f1,
        "auc": auc,
        "mean_average_precision": mean_average_precision,
        "calibration_error": calibration_error,
        "confusion": confusion,
    },
)
register_set_metric = SET_METRICS.register


def compute(
    metrics: Mapping[str, SetMetric],
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, float]:
    """Returns the metrics of logits [N, K] and labels; several of one by "NAME/PART"."""
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        probabilities = 1 / (1 + np.exp(-logits))
    else:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = powers / powers.sum(1, keepdims=True)
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric(probabilities, labels, class_names)
        parts = (
            {f"{name}/{part}": each for part, each in value.items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
        found |= {part: float(each) for part, each in parts.items() if math.isfinite(each)}
    return found
