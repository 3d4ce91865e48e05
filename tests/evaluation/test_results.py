"""The figures of an evaluation, from records written by hand."""

from typing import Any

import numpy as np
import pytest

from googlenet_jax.evaluation.records import make_records
from googlenet_jax.evaluation.results import (
    calibration,
    confusion_matrix,
    format_table,
    summarize,
    worst_mistakes,
)

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]


def record(index: int, label: int, predicted: int, probability: float, ranks: Any) -> dict:
    logs = -np.ones(np.shape(ranks))
    return {
        "index": index,
        "label": label,
        "rank": ranks,
        "log_probability": logs.tolist(),
        "alone": {"rank": ranks, "log_probability": (2 * logs).tolist()},
        "classes": [predicted],
        "probabilities": [probability],
    }


RECORDS = [  # two models (rows) with 1 and 10 crops (columns)
    record(0, 0, 0, 0.95, [[0, 0], [0, 0]]),
    record(1, 0, 1, 0.90, [[5, 1], [1, 1]]),
    record(2, 1, 1, 0.55, [[1, 0], [0, 0]]),
    record(3, 2, 1, 0.35, [[5, 5], [5, 2]]),
]


def test_table_counts_misses_of_each_prefix_and_number_of_crops() -> None:
    result = summarize(RECORDS, NAMES, ["first", "second"], [1, 10])
    keys = ("models", "crops", "cost", "top1_error", "top5_error")
    assert [tuple(row[key] for key in keys) for row in result["table"]] == [
        (1, 1, 1, 0.75, 0.5),
        (2, 1, 2, 0.5, 0.25),
        (1, 10, 10, 0.5, 0.25),
        (2, 10, 20, 0.5, 0.0),
    ]
    assert (result["examples"], result["top1"], result["top5"]) == (4, 0.5, 1.0)
    assert result["loss"] == 1 and result["alone"][0]["loss"] == 2
    assert [(row["model"], row["crops"]) for row in result["alone"]] == [
        ("first", 1), ("second", 1), ("first", 10), ("second", 10)
    ]  # fmt: skip


def test_printed_table_compares_with_the_first_row() -> None:
    lines = format_table(summarize(RECORDS, NAMES, ["a", "b"], [1, 10])["table"]).splitlines()
    assert " ".join(lines[0].split()) == "models crops cost top-1 error top-5 error top-5 change"
    assert lines[1].split() == ["1", "1", "1", "75.00", "%", "50.00", "%", "base"]
    assert lines[4].split() == ["2", "10", "20", "50.00", "%", "0.00", "%", "-50.00", "%"]


def test_there_is_no_top5_below_five_classes() -> None:
    result = summarize(RECORDS, NAMES[:3], ["a", "b"], [1, 10])
    assert "top5" not in result and "top5_error" not in result["table"][0]
    assert "top-5" not in format_table(result["table"])


def test_expected_calibration_error_by_hand() -> None:
    result = calibration(RECORDS, bins=2)
    # (0, ½]: 0.35, wrong. (½, 1]: 0.95, 0.90, 0.55 of which two are right.
    low, high = result["bins"]
    assert (low["examples"], low["confidence"], low["accuracy"]) == (1, 0.35, 0.0)
    assert (high["examples"], high["accuracy"]) == (3, pytest.approx(2 / 3))
    assert high["confidence"] == pytest.approx(0.8)
    assert result["ece"] == pytest.approx(1 / 4 * 0.35 + 3 / 4 * (0.8 - 2 / 3))


def test_a_confidence_on_an_edge_belongs_below_it_and_empty_bins_say_so() -> None:
    certain = [record(0, 0, 0, 1.0, [[0]]), record(1, 0, 0, 0.5, [[0]])]
    bins = calibration(certain, bins=4)["bins"]
    assert [row["examples"] for row in bins] == [0, 1, 0, 1]
    assert bins[0]["confidence"] is None


def test_confusions() -> None:
    matrix = confusion_matrix(RECORDS, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    result = summarize(RECORDS, NAMES[:4], ["a", "b"], [1, 10])
    assert result["confused_pairs"] == [
        {"class": "ant", "predicted": "bee", "count": 1, "share": 0.5},
        {"class": "cat", "predicted": "bee", "count": 1, "share": 1.0},
    ]
    ant, bee, cat = result["classes"]  # there is no example of a dog
    assert (ant["recall"], ant["precision"], ant["most_confused"]) == (0.5, 1.0, "bee")
    assert (bee["recall"], bee["precision"], bee["most_confused"]) == (1.0, 1 / 3, None)
    assert (cat["recall"], cat["precision"], cat["predictions"]) == (0.0, None, 0)


def test_worst_mistakes_are_the_surest() -> None:
    assert [each["index"] for each in worst_mistakes(RECORDS, 5)] == [1, 3]
    assert [each["index"] for each in worst_mistakes(RECORDS, 1)] == [1]


def test_records_rank_the_label_for_every_prefix_and_model() -> None:
    # Two models, one number of crops, three classes; the label is class 1.
    probabilities = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.6, 0.3]]])
    (made,) = make_records(np.log(probabilities)[None], [1], first=7)
    assert (made["index"], made["label"]) == (7, 1)
    assert made["rank"] == [[1], [0]] and made["alone"]["rank"] == [[1], [0]]
    np.testing.assert_allclose(np.exp(made["log_probability"]), [[0.3], [0.45]])
    assert made["classes"] == [1, 0, 2]
    np.testing.assert_allclose(made["probabilities"], [0.45, 0.3, 0.25])


def test_equal_probabilities_stand_in_the_classes_order() -> None:
    equal = np.log(np.full((2, 1, 1, 4), 0.25))
    first, last = make_records(equal, [0, 3], first=0)
    assert first["rank"] == [[0]] and last["rank"] == [[3]]
    assert first["classes"] == [0, 1, 2, 3]
