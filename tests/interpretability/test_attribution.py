"""The maps beside PyTorch's autograd and plain NumPy, in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.interpretability import dreams
from googlenet_jax.interpretability.attribution import (
    gradcam,
    integrated_gradients,
    occlusion,
    spatial_endpoints,
)
from googlenet_jax.interpretability.dreams import OneChannelEach, dream, energy
from googlenet_jax.verification.reference.endpoints import endpoint_names
from tests.parity.harness import make_pair, photographs, relative_error

SIZE, TOLERANCE = 48, 1e-9
TARGETS = np.array([3, 5])


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def pair(float64: None) -> tuple[Any, Any, Any]:
    return make_pair("googlenet_bn", num_classes=7, width=0.1, stem="small", aux_heads=False)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return photographs(SIZE, 2) / 127.5 - 1


def as_torch(inputs: np.ndarray) -> torch.Tensor:
    return torch.tensor(inputs.transpose(0, 3, 1, 2), requires_grad=True)


@pytest.mark.parametrize("endpoint", ["inception_5b", "inception_4a/conv_3x3"])
def test_gradcam_is_pytorchs(pair: Any, inputs: np.ndarray, endpoint: str) -> None:
    network, model, variables = pair
    module = {ours: theirs for theirs, ours in endpoint_names(network).items()}[endpoint]
    kept: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = network.eval().get_submodule(module).register_forward_hook(keep)
    network(as_torch(inputs))["logits"][[0, 1], TARGETS].sum().backward()
    hook.remove()
    (maps,) = kept
    assert maps.grad is not None
    weights = maps.grad.mean((2, 3), keepdim=True)
    theirs = torch.relu((weights * maps).sum(1)).detach().numpy()
    ours = gradcam(model, variables, jnp.asarray(inputs), jnp.asarray(TARGETS), endpoint)
    assert theirs.max() > 0
    assert relative_error(ours, theirs) < 1e-6  # the result is float32


def test_integrated_gradients_are_pytorchs_and_add_up(pair: Any, inputs: np.ndarray) -> None:
    network, model, variables = pair
    steps, total = 50, torch.zeros(2, 3, SIZE, SIZE, dtype=torch.float64)
    network.eval()
    for step in range(steps):
        x = as_torch(inputs * (step + 0.5) / steps)
        network(x)["logits"][[0, 1], TARGETS].sum().backward()
        assert x.grad is not None
        total += x.grad
    theirs = (as_torch(inputs).detach() * total / steps).numpy().transpose(0, 2, 3, 1)
    given = jnp.asarray(inputs), jnp.asarray(TARGETS)
    assert relative_error(integrated_gradients(model, variables, *given, steps), theirs) < TOLERANCE
    logits = [
        np.asarray(model.apply(variables, x, train=False).logits)[[0, 1], TARGETS]
        for x in (given[0], 0 * given[0])
    ]
    sums = np.asarray(integrated_gradients(model, variables, *given, 400)).sum((1, 2, 3))
    np.testing.assert_allclose(sums, logits[0] - logits[1], rtol=0.02, atol=0.02)


def test_occlusion_is_one_prediction_a_place(pair: Any, inputs: np.ndarray) -> None:
    _, model, variables = pair
    apply = jax.jit(lambda x: jax.nn.softmax(model.apply(variables, x, train=False).logits))
    patch, stride = 20, 14
    found = np.asarray(
        occlusion(model, variables, jnp.asarray(inputs), jnp.asarray(TARGETS), patch, stride)
    )
    assert found.shape == (2, 3, 3)
    whole = np.asarray(apply(inputs))
    for i, j in np.ndindex(3, 3):
        covered = inputs.copy()
        covered[:, i * stride : i * stride + patch, j * stride : j * stride + patch] = 0
        lost = (whole - np.asarray(apply(covered)))[[0, 1], TARGETS]
        np.testing.assert_allclose(found[:, i, j], lost, atol=1e-12)


def test_maps_are_endpoints_in_the_networks_order(pair: Any, inputs: np.ndarray) -> None:
    _, model, variables = pair
    found = spatial_endpoints(model, variables, SIZE)
    expected = gj.endpoints(model, variables, jnp.asarray(inputs))
    assert found == {name: value.shape[1:] for name, value in expected.items() if value.ndim == 4}
    assert next(iter(found)).startswith("conv1") and list(found)[-1] == "inception_5b"


def test_dreams_raise_what_they_are_to_raise(
    pair: Any, inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreams, "OCTAVES", 2)
    _, model, variables = pair
    x, limits = jnp.asarray(inputs), (jnp.full(3, -1.0), jnp.full(3, 1.0))
    for objective in (energy, OneChannelEach((2, 0))):
        dreamt = dream(model, variables, x, "inception_4a", objective, limits)
        before, after = (
            objective(gj.endpoints(model, variables, each)["inception_4a"]) for each in (x, dreamt)
        )
        assert float(after) > 1.2 * float(before)
        np.testing.assert_array_equal(
            dreamt, dream(model, variables, x, "inception_4a", objective, limits)
        )


def test_octaves_are_sizes_that_the_network_takes() -> None:
    model = gj.create_model("googlenet", width=0.1, aux_heads=False)
    sizes = dreams.octave_sizes(model, 64)
    assert sizes == [33, 46, 64]  # 23 is too small
    flat = gj.create_model("googlenet", fully_connected_head=True)
    assert dreams.octave_sizes(flat, 224) == [224]
