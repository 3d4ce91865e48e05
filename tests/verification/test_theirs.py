"""A PyTorch module is seen whatever the style that it is written in."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from googlenet_jax.verification.match import channels_first
from googlenet_jax.verification.theirs import Theirs, named

IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3))


class Free(nn.Module):
    """No layer is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.matrix = nn.Parameter(torch.randn(5, 4 * 36))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(F.pad(x, (2, 0, 2, 0)), self.kernel.transpose(2, 3)) + self.shift
        x = F.dropout(x.relu_(), 0.5, training=True)
        return F.linear(x.reshape(len(x), -1), self.matrix)


def test_functions_in_forward_are_layers_with_their_bias_and_activation():
    side = Theirs(Free(), "float64")
    first, last = side.trace(IMAGES).units
    assert (first.weight, first.parts) == ("kernel", {"bias": "shift"})
    assert first.input.shape == (2, 3, 6, 6)  # before it was padded
    assert first.output.min() == 0 > first.linear.min()
    assert last.weight == "matrix" and last.flattened == (2, 4, 6, 6) and channels_first(last)
    # Without dropout: the same twice.
    again = side.trace(IMAGES).outputs["logits"]
    assert np.array_equal(again, side.trace(IMAGES).outputs["logits"])


def test_batch_norm_in_evaluation_belongs_to_its_convolution_and_in_place_does_not_spoil_it():
    norm = nn.BatchNorm2d(4, eps=0.25)
    side = Theirs(nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(inplace=True)), "float64")
    (unit,) = side.trace(IMAGES).units
    assert unit.epsilon == 0.25
    assert unit.parts["bn/mean"] == "1.running_mean" and unit.parts["bn/scale"] == "1.weight"
    expected = torch.from_numpy(unit.linear) / (1.25**0.5)  # mean 0, variance 1, scale 1, shift 0
    assert np.allclose(unit.output, expected.clamp(min=0))
    assert float(norm.running_mean.abs().sum()) == 0  # evaluation left the statistics alone


def test_outputs_are_named_as_ours():
    a, b, c = torch.zeros(3, 1, 2)
    assert [name for name, _ in named((a, b, c))] == ["logits", "aux1", "aux2"]
    assert [name for name, _ in named({"out": a, "aux": b})] == ["logits", "aux1"]
    assert [name for name, _ in named({"logits": a, "aux_logits2": b})] == ["logits", "aux2"]


def test_images_of_either_layout_are_found_out():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).mean((1, 2))

    side = Theirs(Last(), "float64")
    assert side.trace(IMAGES).outputs["logits"].shape == (2, 4)
    assert side.channels_last
