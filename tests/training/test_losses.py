import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.metrics import cross_entropy
from googlenet_jax.models.network import Output
from googlenet_jax.training.losses import LOSSES, create_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_pytorchs(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = (
        {name: 3 * rng.normal(size=(6, 5)) for name in ("main", "aux1", "aux2")},
        rng.integers(0, 5, 6),
    )
    torch_logits = {name: torch.tensor(x, requires_grad=True) for name, x in logits.items()}
    parts = {
        name: torch.nn.functional.cross_entropy(x, torch.tensor(labels), label_smoothing=smoothing)
        for name, x in torch_logits.items()
    }
    expected = parts["main"] + 0.3 * (parts["aux1"] + parts["aux2"])
    expected.backward()

    def loss(logits):
        output = Output(logits["main"], {name: logits[name] for name in ("aux1", "aux2")})
        return create_loss(aux_weight=0.3, label_smoothing=smoothing)(
            output, {"label": jnp.asarray(labels)}
        )

    with jax.enable_x64(True):
        (total, ours), gradients = jax.value_and_grad(loss, has_aux=True)(
            {name: jnp.asarray(x) for name, x in logits.items()}
        )
    np.testing.assert_allclose(total, expected.item(), rtol=1e-14)
    assert ours.keys() == {"loss_main", "loss_aux1", "loss_aux2"}
    for name in logits:
        np.testing.assert_allclose(ours[f"loss_{name}"], parts[name].item(), rtol=1e-14)
        np.testing.assert_allclose(
            gradients[name], torch_logits[name].grad.numpy(), rtol=1e-12, atol=1e-15
        )


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.full((2, 1000), 10.0, jnp.bfloat16)
    losses = cross_entropy(logits, jnp.array([0, 999]))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, np.log(1000), rtol=1e-6)


def test_a_registered_loss_gets_its_options_and_the_fields_that_it_takes():
    def focal(output, batch, label_smoothing, gamma=2.0):
        return output.logits.sum() * gamma + label_smoothing, {}

    LOSSES.register("focal of this test", focal)
    output = Output(jnp.ones((2, 3)), {})
    loss = create_loss("focal of this test", label_smoothing=0.5, options={"gamma": 3.0})
    assert loss(output, {})[0] == 18.5
    with pytest.raises(
        UserError, match=r"^loss.aux_weight: .* has no use for it; leave it at 0.3, found 0.5"
    ):
        create_loss("focal of this test", aux_weight=0.5)
    with pytest.raises(UserError, match=r"^loss.options.gama: .*did you mean 'gamma'"):
        create_loss("focal of this test", options={"gama": 3.0})


def test_a_name_is_one_things():
    with pytest.raises(UserError, match="there is a 'cross_entropy' already"):
        LOSSES.register("cross_entropy", lambda output, batch: (0.0, {}))
