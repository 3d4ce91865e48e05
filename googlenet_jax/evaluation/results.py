"""The figures of an evaluation, from its records: errors, calibration, confusions, classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from googlenet_jax.evaluation.records import TOP, Record

BINS = 15  # as in arXiv 1706.04599
PAIRS = 20


def summarize(
    records: Sequence[Record],
    class_names: Sequence[str],
    members: Sequence[str],
    crops: Sequence[int],
) -> dict[str, Any]:
    """Works out everything that the records say.

    Returns:
      Plain JSON values; errors, accuracies and probabilities from 0 to 1:
        examples; loss, top1, top5: of all models with the most crops (top5 absent below five
          classes).
        table: a row for the first 1, 2, … models with each number of crops, as in the paper's
          Table 3: models, crops, cost (models × crops), top1_error, top5_error, loss.
        alone: a row for each model by itself: model, crops, top1_error, top5_error, loss.
        calibration: ece (expected calibration error, 15 bins, arXiv 1706.04599) and the bins: low,
          high, examples, confidence, accuracy (the last two None where there is no example).
        classes: of those that have examples: class, examples, predictions (of the class), recall,
          precision (None where undefined), most_confused (the class it is taken for most often,
          None where never).
        confused_pairs: the most frequent mistakes: class, predicted, count, share of the class.
    """
    measures = _measures(len(class_names))
    log_probability = np.array([record["log_probability"] for record in records])
    rank = np.array([record["rank"] for record in records])
    table = [
        {"models": models + 1, "crops": count, "cost": (models + 1) * count}
        | _errors(rank[:, models, column], log_probability[:, models, column], measures)
        for column, count in enumerate(crops)
        for models in range(len(members))
    ]
    own_rank = np.array([record["alone"]["rank"] for record in records])
    own_log = np.array([record["alone"]["log_probability"] for record in records])
    alone = [
        {"model": name, "crops": count}
        | _errors(own_rank[:, model, column], own_log[:, model, column], measures)
        for column, count in enumerate(crops)
        for model, name in enumerate(members)
    ]
    matrix = confusion_matrix(records, len(class_names))
    best = table[-1]
    return {
        "examples": len(records),
        "loss": best["loss"],
        **{f"top{k}": 1 - best[f"top{k}_error"] for k in measures},
        "table": table,
        "alone": alone,
        "calibration": calibration(records),
        "classes": _classes(matrix, class_names),
        "confused_pairs": _pairs(matrix, class_names),
    }


def _measures(classes: int) -> tuple[int, ...]:
    return (1, TOP) if classes >= TOP else (1,)


def _errors(
    rank: np.ndarray, log_probability: np.ndarray, measures: Sequence[int]
) -> dict[str, float]:
    errors = {f"top{k}_error": float((rank >= k).mean()) for k in measures}
    return {**errors, "loss": float(-log_probability.mean())}


def confusion_matrix(records: Sequence[Record], classes: int) -> np.ndarray:
    """Returns how often examples of a class (row) were taken for a class (column): int64 [K, K]."""
    matrix = np.zeros((classes, classes), np.int64)
    labels = [record["label"] for record in records]
    predicted = [record["classes"][0] for record in records]
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def calibration(records: Sequence[Record], bins: int = BINS) -> dict[str, Any]:
    """Returns the expected calibration error and its bins, as `summarize` describes them.

    A prediction's confidence is its probability. Bins are of equal width, (low, high], and the
    error is the mean over examples of |accuracy − confidence| of their bin.
    """
    confidence = np.array([record["probabilities"][0] for record in records])
    right = np.array([record["classes"][0] == record["label"] for record in records])
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows, error = [], 0.0
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        mean, accuracy = (
            (float(confidence[inside].mean()), float(right[inside].mean()))
            if count
            else (None, None)
        )
        if mean is not None and accuracy is not None:
            error += count / len(records) * abs(accuracy - mean)
        rows.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "examples": count,
                "confidence": mean,
                "accuracy": accuracy,
            }
        )
    return {"ece": error, "bins": rows}


def _classes(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = matrix - np.diag(np.diag(matrix))
    rows = []
    for number, name in enumerate(names):
        if not matrix[number].any():
            continue
        examples, predicted = int(matrix[number].sum()), int(matrix[:, number].sum())
        hits = int(matrix[number, number])
        other = int(wrong[number].argmax())
        rows.append(
            {
                "class": name,
                "examples": examples,
                "predictions": predicted,
                "recall": hits / examples,
                "precision": hits / predicted if predicted else None,
                "most_confused": names[other] if wrong[number, other] else None,
            }
        )
    return rows


def _pairs(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [
        {
            "class": names[label],
            "predicted": names[predicted],
            "count": int(wrong[label, predicted]),
            "share": int(wrong[label, predicted]) / int(matrix[label].sum()),
        }
        for label, predicted in pairs
        if wrong[label, predicted]
    ]


def worst_mistakes(records: Sequence[Record], count: int) -> list[Record]:
    """Returns the wrong predictions of the highest probability, the highest first."""
    wrong = [record for record in records if record["classes"][0] != record["label"]]
    return sorted(wrong, key=lambda record: -record["probabilities"][0])[:count]


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """Lays the table out as the paper's Table 3, with the top-1 error beside it; the last column is
    the change of the top-5 error (of fewer classes, of the top-1 error) against the first row's.
    """
    measured = [k for k in (1, TOP) if f"top{k}_error" in table[0]]
    last = f"top{measured[-1]}_error"
    base = table[0][last]
    change = f"top-{measured[-1]} change"  # to one model and one crop, the first row
    heads = ["models", "crops", "cost", *(f"top-{k} error" for k in measured), change]
    lines = ["  ".join(f"{head:>12}" for head in heads)]
    for row in table:
        against = "base" if row is table[0] else f"{100 * (row[last] - base):+.2f} %"
        cells = [str(row["models"]), str(row["crops"]), str(row["cost"])]
        cells += [f"{100 * row[f'top{k}_error']:.2f} %" for k in measured] + [against]
        lines.append("  ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
