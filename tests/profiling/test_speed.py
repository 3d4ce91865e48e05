"""What is counted and what is timed; never how long it took."""

import sys

import flax.linen as nn
import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.models.googlenet import PLAIN
from googlenet_jax.profiling import speed, torch_speed
from googlenet_jax.profiling.summary import summarize


def test_training_takes_three_passes_but_for_the_gradient_of_the_images():
    summary = summarize(gj.create_model("googlenet_bn"))
    conv1 = 7 * 7 * 3 * 64 * 112 * 112
    forward = summary.totals(aux=False)["multiply_adds"]
    heads = 2 * ((128 * 4 * 4) * 1024 + 1024 * 1000) + 128 * 4 * 4 * (512 + 528)
    assert speed.operations(summary, train=False, batch_size=32) == 32 * 2 * forward
    assert speed.operations(summary, train=True, batch_size=1) == 2 * (
        3 * (forward + heads) - conv1
    )


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_the_peer_has_as_many_parameters(name):
    """The README's figures of the papers' networks."""
    count = sum(parameter.numel() for parameter in torch_speed.create(name).parameters())
    assert count == {"googlenet": 13_378_280, "googlenet_bn": 13_385_816}[name]


def test_the_peers_batch_norms_fold_without_changing_it():
    torch.manual_seed(0)
    network = torch_speed.create("googlenet_bn").eval()
    folded = torch_speed._fold(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images)[0], network(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["googlenet_torchvision", "inception_v3"])
def test_without_a_torchvision_that_can_be_imported_the_reference_is_the_peer(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "this project's reference, as torchvision can't be imported" in torch_speed.whose(name)
    network = torch_speed.create(name).train()
    size = 299 if name == "inception_v3" else 64
    with torch.device("meta"):  # shapes alone
        network = network.to("meta")
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        torch_speed._training(network, optimizer, torch.zeros(2, 3, size, size), torch.arange(2))()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_networks_without_a_peer_are_named():
    with pytest.raises(
        UserError, match="no PyTorch form of googlenet_slim; there are: googlenet, "
    ):
        torch_speed.create("googlenet_slim")


def test_every_layer_is_timed_on_the_input_that_it_has_in_the_network():
    model = gj.create_model("googlenet_bn", width=0.05)
    children = speed._children(model, batch_size=2)
    names = [row.name for row in summarize(model).rows]
    assert set(names) - {"pool5"} <= set(children)  # pool5 is a mean, not a layer of its own
    _, (x, *_) = children["inception_4a"]
    assert x.shape == (2, 14, 14, 6 + 10 + 5 + 3)  # the columns of 3b times 0.05


class Small(gj.Network):
    """A classifier of the images' mean color."""

    style = PLAIN
    input_size = 8

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None):
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        return self.finish(layers, "pool", x)


@pytest.mark.parametrize("train", [True, False])
def test_a_network_is_timed_step_by_step(train):
    timing = speed.time_network(Small(num_classes=3), train=train, batch_size=2, steps=3)
    assert len(timing.seconds) == len(timing.cpu_seconds) == 3 and timing.device == "cpu"
    assert min(timing.seconds) > 0 and timing.peak_bytes > 1 << 20
