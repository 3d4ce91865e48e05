import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from googlenet_jax.evaluation.metrics import cross_entropy
from googlenet_jax.models.network import Output
from googlenet_jax.training.losses import create_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_pytorchs(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = {name: 3 * rng.normal(size=(6, 5)) for name in ("main", "aux1", "aux2")}, rng.integers(0, 5, 6)
    torch_logits = {name: torch.tensor(x, requires_grad=True) for name, x in logits.items()}
    parts = {
        name: torch.nn.functional.cross_entropy(x, torch.tensor(labels), label_smoothing=smoothing) for name, x in torch_logits.items()
    }
    expected = parts["main"] + 0.3 * (parts["aux1"] + parts["aux2"])
    expected.backward()

    def loss(logits):
        output = Output(logits["main"], {name: logits[name] for name in ("aux1", "aux2")})
        return create_loss(aux_weight=0.3, label_smoothing=smoothing)(output, {"label": jnp.asarray(labels)})

    with jax.enable_x64(True):
        (total, ours), gradients = jax.value_and_grad(loss, has_aux=True)({name: jnp.asarray(x) for name, x in logits.items()})
    np.testing.assert_allclose(total, expected.item(), rtol=1e-14)
    assert ours.keys() == {"loss_main", "loss_aux1", "loss_aux2"}
    for name in logits:
        np.testing.assert_allclose(ours[f"loss_{name}"], parts[name].item(), rtol=1e-14)
        np.testing.assert_allclose(gradients[name], torch_logits[name].grad.numpy(), rtol=1e-12, atol=1e-15)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.full((2, 1000), 10.0, jnp.bfloat16)
    losses = cross_entropy(logits, jnp.array([0, 999]))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, np.log(1000), rtol=1e-6)
