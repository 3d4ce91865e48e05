"""The likeliest classes."""

import numpy as np

from googlenet_jax.evaluation.predict import top_predictions


def test_top_predictions_are_in_order_and_equals_in_class_order() -> None:
    top = top_predictions(np.array([0.1, 0.4, 0.1, 0.4]), ["a", "b", "c", "d"], 3)
    assert [each.class_name for each in top] == ["b", "d", "a"]
    assert [each.probability for each in top] == [0.4, 0.4, 0.1]
    assert len(top_predictions(np.array([0.5, 0.5]), ["a", "b"], 5)) == 2
