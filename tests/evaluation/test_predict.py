"""The most probable classes."""

import numpy as np
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.predict import top_predictions


def test_top_predictions_are_in_order_and_equals_in_class_order() -> None:
    top = top_predictions(np.array([0.1, 0.4, 0.1, 0.4]), ["a", "b", "c", "d"], 3)
    assert [each.class_name for each in top] == ["b", "d", "a"]
    assert [each.probability for each in top] == [0.4, 0.4, 0.1]
    assert len(top_predictions(np.array([0.5, 0.5]), ["a", "b"], 5)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_prediction(value: float) -> None:
    """JSON has no NaN, and a broken network has no classes."""
    with pytest.raises(UserError, match="not finite"):
        top_predictions(np.array([0.5, value]), ["a", "b"], 1)
