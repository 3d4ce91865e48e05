import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError

CAFFE = Preprocessing(
    size=224, resize=256, mean=(104, 117, 123), std=(1, 1, 1), channel_order="bgr"
)


def test_survives_json():
    assert Preprocessing.from_dict(json.loads(json.dumps(CAFFE.to_dict()))) == CAFFE


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("size", 0, "0"),
        ("size", 32.5, "32.5"),
        ("size", True, "True"),
        ("resize", 100, "100"),
        ("mean", (1, 2), "(1.0, 2.0)"),
        ("mean", "123", "'123'"),
        ("mean", np.array(3), "3"),
        ("mean", {1: 0, 2: 0, 3: 0}, "{1: 0, 2: 0, 3: 0}"),
        ("mean", (0, 0, 10**400), "10000"),
        ("mean", (0, 0, 1e39), "1e+39"),  # infinite in float32
        ("std", (1, 1e-50, 1), "1e-50"),  # zero in float32
        ("size", 10**30, "1000000"),
        ("mean", (1, 2, float("nan")), "nan"),
        ("std", (1, 0, 1), "0.0"),
        ("channel_order", "rbg", "'rbg'"),
        ("channel_order", None, "None"),
    ],
)
def test_an_impossible_value_names_its_field(field, value, found):
    with pytest.raises(UserError, match=rf"preprocessing\.{field}") as error:
        dataclasses.replace(CAFFE, **{field: value})
    assert found in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(UserError, match=r"'sise'.*did you mean 'size'"):
        Preprocessing.from_dict({"sise": 3})
    with pytest.raises(UserError, match="expected an object"):
        Preprocessing.from_dict([224])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_takes_mean_and_std_in_the_network_s_channel_order(dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    rgb = Preprocessing(
        size=4, resize=4, mean=(103.675, 96.28, 53.53), std=(58.395, 57.12, 47.375)
    )  # none exact in bfloat16
    for preprocessing, ordered in ((rgb, images), (CAFFE, images[..., ::-1])):
        expected = (ordered.astype(np.float32) - np.float32(preprocessing.mean)) / np.float32(
            preprocessing.std
        )
        result = jax.jit(normalize, static_argnums=(1, 2))(images, preprocessing, dtype)
        assert result.dtype == dtype
        # Arithmetic in float32, rounded once: within half a unit in the last place of `dtype`.
        np.testing.assert_allclose(
            np.asarray(result, np.float32), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-5
        )


def test_normalize_refuses_images_that_were_scaled_already():
    with pytest.raises(UserError, match="expected uint8"):
        normalize(jnp.zeros((1, 4, 4, 3)), CAFFE)
