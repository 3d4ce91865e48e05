"""`verify` beside Keras, where it is installed."""

import pytest

import googlenet_jax as gj
from googlenet_jax.verification.sides import keras_inception
from googlenet_jax.verification.verify import default_images, own_network, verify

pytest.importorskip("keras")


@pytest.mark.proof
def test_keras_s_inception_v3_is_ours_to_its_own_rounding_and_a_fault_is_named():
    options = {"flavour": "keras", "num_classes": 10, "aux_heads": False}
    model = gj.create_model("inception_v3", **options)
    keras = keras_inception(model, 75, "float64")
    images = default_images(75)
    found = verify(own_network(model, None, 75, "float64", 0), keras, images)
    assert found.equal, found
    assert len(found.alignment.pairs) == 95
    other = own_network(model.clone(bn_epsilon=1e-2), None, 75, "float64", 0)
    found = verify(other, keras, images)
    assert {(f.name, f.layer) for f in found.findings} == {("BN epsilon", "")}
