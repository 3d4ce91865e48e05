"""Class probabilities."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.evaluation.predict import predict, top_predictions
from googlenet_jax.models.network import Output

PREPROCESSING = Preprocessing(size=4, resize=4, channel_order="bgr")


class Tiny(nn.Module):
    """A network of the same interface, compiled at once."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        return Output(nn.Dense(6)(images.reshape(len(images), -1)), {})


def test_batches_do_not_change_the_probabilities() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    model = Tiny()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    expected = jax.nn.softmax(model.apply(variables, normalize(jnp.asarray(images), PREPROCESSING), train=False).logits)
    for batch_size in (1, 3, 7, 32):
        found = predict(model, variables, images, PREPROCESSING, batch_size)  # type: ignore[arg-type]
        assert found.shape == (7, 6)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_top_predictions_are_in_order_and_equals_in_class_order() -> None:
    top = top_predictions(np.array([0.1, 0.4, 0.1, 0.4]), ["a", "b", "c", "d"], 3)
    assert [each.class_name for each in top] == ["b", "d", "a"]
    assert [each.probability for each in top] == [0.4, 0.4, 0.1]
    assert len(top_predictions(np.array([0.5, 0.5]), ["a", "b"], 5)) == 2
