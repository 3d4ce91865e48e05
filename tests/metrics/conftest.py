"""A narrow network of the FID's flavour with random weights, and images for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.metrics import InceptionFeatures, inception_features
from googlenet_jax.models.network import variable_shapes


@pytest.fixture(scope="session")
def features() -> InceptionFeatures:
    """Features of a network of a tenth of the width."""
    model = gj.create_model("inception_v3", flavour="fid", width=0.1, num_classes=20)
    random = np.random.default_rng(0)

    def draw(path, leaf) -> jax.Array:
        values = random.normal(size=leaf.shape)
        if leaf.ndim > 1:
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path[-1].key in ("var", "scale"):
            values = 1 + 0.1 * np.abs(values)
        else:
            values *= 0.1
        return jnp.asarray(values, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, variable_shapes(model, 75))
    return inception_features(model, variables)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Sixteen images of random blocks of colour, uint8 [16, 40, 40, 3]."""
    blocks = np.random.default_rng(0).integers(0, 256, (16, 5, 5, 3), np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)
