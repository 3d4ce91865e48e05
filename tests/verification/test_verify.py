"""Planted faults are found, named and tested; what is on no list stays unexplained at its place."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.models.layers import avg_pool
from googlenet_jax.verification import report as reports
from googlenet_jax.verification.sides import JaxSide
from googlenet_jax.verification.verify import (
    Report,
    default_images,
    own_network,
    reference_of,
    verify,
)
from tests.verification.other_style import Net
from tests.verification.small import CLASSES, SIZE, BiasedNorm, Twin

pytestmark = pytest.mark.usefixtures("small_network")
Plant = Callable[[Twin], None]
IMAGES = default_images(SIZE)


@pytest.fixture(scope="module")
def ours(small_network: None) -> JaxSide:
    """The small network with random weights, its operations read once for all tests."""
    return own_network(gj.create_model("small", num_classes=CLASSES), None, SIZE, "float64", 0)


def twin(*plants: Plant) -> Twin:
    torch.manual_seed(0)
    made = Twin()
    for plant in plants:
        plant(made)
    return made


def set_to(path: str, value: Any) -> Plant:
    """Sets an attribute of the twin: "conv2.transposed"."""

    def plant(made: Twin) -> None:
        *owner, name = path.split(".")
        setattr(made.get_submodule(".".join(owner)), name, value)

    return plant


def runs(path: str, function: Callable[[Any, Tensor], Tensor]) -> Plant:
    """Another forward pass of a unit."""

    def plant(made: Twin) -> None:
        unit = made.get_submodule(path)
        unit.forward = lambda x: function(unit, x)

    return plant


def norms(change: Callable[[nn.BatchNorm2d], None]) -> Plant:
    def plant(made: Twin) -> None:
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)

    return plant


def act(path: str, function: Callable[[Tensor], Tensor]) -> Plant:
    """Another activation of a unit."""
    return runs(path, lambda unit, x: function(unit.bn(unit.conv(x))))


def by_hand(norm: nn.BatchNorm2d) -> None:
    wide = lambda v: v[:, None, None]  # noqa: E731

    def forward(x: Tensor) -> Tensor:
        scaled = (x - wide(norm.running_mean)) / torch.sqrt(wide(norm.running_var) + norm.eps)
        return scaled * wide(norm.weight) + wide(norm.bias)

    norm.forward = forward


def as_function(norm: nn.BatchNorm2d, scale: bool = True) -> None:
    norm.forward = lambda x: F.batch_norm(
        *(x, norm.running_mean, norm.running_var, norm.weight if scale else None, norm.bias),
        *(norm.training, norm.momentum, norm.eps),
    )


def in_mode_of(made: Twin) -> Callable[[nn.BatchNorm2d], None]:
    def change(norm: nn.BatchNorm2d) -> None:
        norm.forward = lambda x: F.batch_norm(
            *(x, norm.running_mean, norm.running_var, norm.weight, norm.bias),
            *(made.training, norm.momentum, norm.eps),
        )

    return change


def after_concat(made: Twin) -> None:
    for branch in ("b1", "b2b", "b3c", "b4"):
        act(f"mixed.{branch}", lambda x: x)(made)
    mixed = made.mixed.forward
    made.mixed.forward = lambda x: F.relu(mixed(x))


def images(change: Callable[[Tensor], Tensor]) -> Plant:
    return lambda made: made.register_forward_pre_hook(lambda module, given: (change(given[0]),))


def logits(change: Callable[[Tensor], Tensor]) -> Plant:
    def hook(module: Any, given: Any, out: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**out, "logits": change(out["logits"])}

    return lambda made: made.register_forward_hook(hook)


def mixed(pool: Callable[[Tensor], Tensor], order: tuple[int, ...] = (0, 1, 2, 3)) -> Plant:
    """Another pool, or another order of the branches."""

    def plant(made: Twin) -> None:
        unit = made.mixed

        def forward(x: Tensor) -> Tensor:
            parts = [unit.b1(x), unit.b2b(unit.b2a(x)), unit.b3c(unit.b3b(unit.b3a(x)))]
            parts.append(unit.b4(pool(x)))
            return torch.cat([parts[i] for i in order], 1)

        unit.forward = forward

    return plant


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def prelu(made: Twin) -> None:
    made.act = nn.PReLU()
    act("conv2", made.act)(made)


def dropped(made: Twin) -> None:
    linear = made.fc.forward
    made.fc.forward = lambda x: linear(F.dropout(x, 0.5, training=True))


def conv2(**settings: Any) -> Plant:
    def forward(unit: Any, x: Tensor) -> Tensor:
        return F.relu(unit.bn(F.conv2d(x, unit.conv.weight, **settings)))

    return runs("conv2", forward)


EQUAL: dict[str, Plant] = {
    "as it is": lambda made: None,
    "clip": act("conv2", lambda x: x.clip(min=0)),
    "maximum": act("conv2", lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype))),
    "threshold": act("mixed.b2a", lambda x: F.threshold(x, 0.0, 0.0)),
    "where": act("mixed.b1", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
    "times its sign": act("conv1", lambda x: x * (x > 0)),
    "in place": act("conv2", F.relu_),
    "after the concatenation": after_concat,
    "batch norm as a function": norms(as_function),
    "batch norm in the network's mode": lambda made: norms(in_mode_of(made))(made),
    "batch norm by hand": norms(by_hand),
    "frozen": lambda made: made.requires_grad_(False),
}
# What is planted: what it is called, and in which layer ("" is every one).
FAULTS: dict[str, tuple[str, str, Plant]] = {
    "transposed kernel": ("transposed kernel", "conv2", set_to("conv2.transposed", True)),
    "padding side": (
        *("padding side", "mixed/conv_double_3x3_1"),
        set_to("mixed.b3b.before", True),
    ),
    "counted padding": (
        *("pooling that counts padding", "mixed"),
        set_to("mixed.counts", True),
    ),
    "floor": ("ceil against floor", "pool1", set_to("ceil", False)),
    "BGR": ("channel order", "images", set_to("reversed", True)),
    "epsilons": ("BN epsilon", "", norms(lambda norm: setattr(norm, "eps", 1e-5))),
    "one epsilon": (
        *("BN epsilon", "mixed/conv_3x3_reduce"),
        set_to("mixed.b2a.bn.eps", 1e-5),
    ),
    "swapped heads": ("swapped outputs", "aux1, aux2", set_to("swapped", True)),
    "no ReLU": ("missing ReLU", "mixed/conv_1x1", set_to("mixed.b1.bare", True)),
    "PReLU": ("activation", "conv2", prelu),
    "SELU": ("activation", "conv2", act("conv2", F.selu)),
    "Mish": ("activation", "mixed/conv_3x3_reduce", act("mixed.b2a", F.mish)),
    "SiLU by hand": ("activation", "conv1", act("conv1", lambda x: x * torch.sigmoid(x))),
    "leaky": ("activation", "conv2", set_to("conv2.leaky", True)),
    "2x-1": ("input transform", "images", images(lambda x: 2 * x - 1)),
    "x255": ("input transform", "images", images(lambda x: x * 255)),
    "minus mean": (
        *("input transform", "images"),
        images(lambda x: x - torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype)[:, None, None]),
    ),
    "softmax": ("softmax inside", "output logits", logits(lambda x: F.softmax(x, -1))),
    "log softmax": ("log softmax inside", "output logits", logits(lambda x: F.log_softmax(x, -1))),
    "dropout": ("dropout on in evaluation", "input of head", dropped),
    "order": ("concatenation order", "mixed", mixed(average, (3, 0, 1, 2))),
    "no scale": (
        *("missing batch norm scale", ""),
        norms(lambda norm: as_function(norm, scale=False)),
    ),
    "dilation": ("dilation", "conv2", conv2(padding=1, dilation=2)),
    "stride": ("stride", "conv2", conv2(padding=1, stride=2)),
    "max for average": ("max for average", "mixed", mixed(lambda x: F.max_pool2d(x, 3, 1, 1))),
    "no pool": ("missing pool", "mixed", mixed(lambda x: x)),
    "no norm": (
        "missing batch norm",
        "mixed/pool_proj",
        runs("mixed.b4", lambda u, x: F.relu(u.conv(x))),
    ),
    "head's ReLU": ("missing ReLU", "aux1/fc", set_to("aux1.rectified", False)),
}
SLOW = {"leaky", "x255", "log softmax", "SELU", "SiLU by hand", "where", "in place", "one epsilon"}


def cases(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.proof] if name in SLOW else []) for name in table]


@pytest.mark.parametrize("name", cases(EQUAL))
def test_another_spelling_is_equal(name: str, ours: JaxSide):
    found = verify(ours, twin(EQUAL[name]), IMAGES)
    assert found.equal, found
    assert not found.findings and not any(row.parted for row in found.outputs)


@pytest.mark.parametrize("name", cases(FAULTS))
def test_a_planted_fault_is_named_and_with_it_the_outputs_agree(name: str, ours: JaxSide):
    called, layer, plant = FAULTS[name]
    found = verify(ours, twin(plant), IMAGES)
    assert not found.equal
    assert [(f.name, f.layer) for f in found.findings] == [(called, layer)], found
    assert not found.unexplained
    assert not any(row.parted for row in found.after), found


def odd(x: Tensor) -> Tensor:
    return F.relu(x) + 0.1 * torch.sin(x)


def test_what_is_on_no_list_is_unexplained_at_its_place_and_the_rest_goes_on(ours: JaxSide):
    plants = set_to("ceil", False), act("conv2", odd), set_to("mixed.b1.bare", True)
    found = verify(ours, twin(*plants), IMAGES)
    assert {(f.name, f.layer) for f in found.findings} == {
        ("ceil against floor", "pool1"),
        ("missing ReLU", "mixed/conv_1x1"),
    }
    assert {where for _, where in found.unexplained} == {"conv2"}
    assert "unexplained at conv2" in reports.sentence(found)


@pytest.mark.parametrize(
    "names",
    [
        ("BGR", "floor", "counted padding", "no ReLU"),
        ("2x-1", "leaky", "epsilons", "swapped heads"),
    ],
    ids=str,
)
def test_four_faults_at_once_are_all_found(names: tuple[str, ...], ours: JaxSide):
    found = verify(ours, twin(*(FAULTS[name][2] for name in names)), IMAGES)
    assert {(f.name, f.layer) for f in found.findings} == {FAULTS[name][:2] for name in names}
    assert not found.unexplained and not any(row.parted for row in found.after)


def test_training_is_equal_too(ours: JaxSide):
    found = verify(ours, twin(), IMAGES, steps=2)
    assert found.equal, found
    kinds = {row.layer.split()[0] for row in found.training}
    assert kinds == {"loss", "gradient", "parameter", "momentum", "statistic"}


def biased(made: Twin) -> None:
    for module in list(made.modules()):
        if hasattr(module, "bn"):
            module.bn = BiasedNorm(module.bn.num_features, eps=1e-3)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("biased running variance", biased),
        ("BN momentum", norms(lambda norm: setattr(norm, "momentum", 0.01))),
    ],
)
def test_running_statistics_that_are_kept_otherwise_are_named(
    name: str, plant: Plant, ours: JaxSide
):
    found = verify(ours, twin(plant), IMAGES, steps=1)
    assert not found.equal and not any(row.parted for row in found.outputs)
    assert [(f.name, f.layer) for f in found.training_findings] == [(name, "")]


def test_frozen_parameters_are_listed_and_training_goes_on(ours: JaxSide):
    found = verify(ours, twin(EQUAL["frozen"]), IMAGES, steps=1)
    assert found.equal, found
    assert any("frozen parameters" in each for each in found.not_compared)


def test_own_weights_that_differ_are_seen_and_a_transposed_one_is_named(ours: JaxSide):
    port = twin()
    assert verify(ours, port, IMAGES).equal  # leaves the reference's weights in the port
    with torch.no_grad():
        port.conv2.conv.weight.copy_(port.conv2.conv.weight.transpose(2, 3).clone())
    found = verify(ours, port, IMAGES, weights="own")
    assert [(f.name, f.layer) for f in found.findings] == [("transposed kernel", "conv2")]
    with torch.no_grad():
        port.conv2.conv.weight.normal_()
    found = verify(ours, port, IMAGES, weights="own")
    assert not found.findings and {where for _, where in found.unexplained} == {"conv2"}


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.avg_pool2d(F.relu(self.one(x)), 3, 1, 1)).mean((2, 3))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_a_pool_over_a_map_of_one_place_is_a_pool(height: int, width: int):
    rng = np.random.default_rng(0)
    weights = {"one": rng.normal(size=(3, 4)), "two": rng.normal(size=(4, 5))}

    def function(weights: Any, x: Any) -> Any:
        x = avg_pool(jax.nn.relu(x @ weights["one"]), 3, 1, 1, count_padding=True)
        return (x @ weights["two"]).mean((1, 2))

    found = verify((function, weights), Pooled(), rng.normal(size=(4, height, width, 3)))
    assert found.equal and found.alignment.left() == ([], []), found


def test_an_adaptive_pool_on_a_map_of_another_size_is_no_finding(ours: JaxSide):
    found = verify(ours, twin(conv2(padding=0)), IMAGES)
    assert {f.name for f in found.findings} == {"padding"} and not found.unexplained, found


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("extra bias", lambda u, x: F.relu(u.bn(u.conv(x) + x.new_full((1,), 0.4)))),
        ("activation", lambda u, x: F.prelu(u.bn(u.conv(x)), x.new_full((1,), 0.3))),
        ("activation before batch norm", lambda u, x: u.bn(F.relu(u.conv(x)))),
    ],
)
def test_a_unit_in_another_order_or_with_constants_of_its_own(
    name: str, forward: Callable[[Any, Tensor], Tensor], ours: JaxSide
):
    found = verify(ours, twin(runs("conv2", forward)), IMAGES)
    assert [(f.name, f.layer) for f in found.findings] == [(name, "conv2")], found
    assert not found.unexplained


def test_what_could_not_be_paired_is_listed(ours: JaxSide):
    class Shorter(Twin):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
            return self.fc(self.mixed(x).mean((2, 3)))

    found = verify(ours, Shorter(), IMAGES)
    assert found.equal, found
    mine, _ = found.alignment.left()
    assert mine == [f"aux{i}/{part}" for i in (1, 2) for part in ("conv", "fc", "head")]
    assert "the reference's output aux1" in reports.covers(found)


def test_nothing_in_common_is_an_error_in_words(ours: JaxSide):
    module = nn.Sequential(nn.Conv2d(3, 77, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="none of the 1 convolutions"):
        verify(ours, module, IMAGES)


def test_one_image_is_too_few(ours: JaxSide):
    with pytest.raises(UserError, match="at least two examples"):
        verify(ours, twin(), IMAGES[:1])


def test_the_conversion_it_found_is_code_that_converts(ours: JaxSide):
    port = twin()
    found = verify(ours, port, IMAGES)
    space: dict[str, Any] = {}
    exec(found.conversion(), space)
    given = {name: np.asarray(v) for name, v in _flat(ours.parameters).items()}
    made = space["convert"](given)
    state = port.state_dict()
    assert set(made) == {name for name in state if "num_batches" not in name}
    wrong = [name for name, value in made.items() if not np.array_equal(value, state[name].numpy())]
    assert not wrong


def _flat(tree: Any) -> dict[str, Any]:
    from googlenet_jax.verification.from_jax import named_leaves

    return named_leaves(tree)


def test_reports_say_the_same_as_text_json_markdown_and_page(ours: JaxSide):
    found = verify(ours, twin(FAULTS["floor"][2]), IMAGES)
    data = json.loads(reports.as_json(found))
    assert data["explanations"] == [
        {"fault": "ceil against floor", "layer": "pool1", "detail": found.findings[0].detail}
    ]
    for content in (
        reports.text(found),
        reports.markdown(found, "cmd"),
        reports.page(found, "cmd"),
    ):
        assert "ceil against floor (pool1" in content
        assert "With this in the reference, all outputs are" in content
    assert not isinstance(found, Report) or str(found) == reports.text(found)


@pytest.mark.parametrize("name", gj.list_models())
def test_every_network_has_a_reference_with_its_options(name: str):
    model = gj.create_model(name, num_classes=7, width=0.125)
    shapes = [value.shape for value in reference_of(model).state_dict().values()]
    assert (7,) in shapes  # a classifier's bias


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", gj.list_models())
def test_every_network_is_equal_to_its_reference_in_float64(name: str):
    model = gj.create_model(name, num_classes=7, width=0.125)
    size = max(model.min_size, 32)
    side = own_network(model, None, size, "float64", 0)
    found = verify(side, reference_of(model), default_images(size))
    assert found.equal, found
    assert not any(row.parted for row in found.rows)
    assert found.alignment.left() == ([], [])


@pytest.mark.exhaustive
def test_a_googlenet_in_another_style_is_paired_without_help():
    torch.manual_seed(0)
    side = own_network(
        gj.create_model("googlenet_bn", num_classes=7, width=0.125), None, 32, "float64", 0
    )
    found = verify(side, Net(), default_images(32))
    assert found.equal, found
    assert found.alignment.left() == ([], [])
