"""`verify` beside Keras, where it is installed."""

import pytest

import googlenet_jax as gj
from googlenet_jax.verification.of_keras import KerasSide
from googlenet_jax.verification.verify import verify

pytest.importorskip("keras")


@pytest.mark.proof
def test_keras_s_inception_v3_is_ours_to_its_own_rounding_and_a_fault_is_named():
    options = {"flavour": "keras", "num_classes": 10, "aux_heads": False}
    model = gj.create_model("inception_v3", **options)
    side = KerasSide.of(model, 75, "float64")
    found = verify(model, side, size=75)
    assert found.verdict == "equal to rounding", found.sentence()
    assert len(found.match.pairs) == 95 and not found.match.theirs
    other = verify(model.clone(bn_epsilon=1e-2), side, size=75)
    assert [(fault.name, fault.detail) for fault in other.faults] == [("BN epsilon", "0.001")]
