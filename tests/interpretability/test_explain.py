"""`gj.explain` and `googlenet-jax explain`: equal to slow forms in PyTorch, and what they write."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.interpretability.explain import METHODS
from googlenet_jax.verification.reference import NETWORKS
from tests.data.photographs import photograph
from tests.parity.harness import randomise
from tests.verification.small import Twin

SIZE, TARGET = 24, 3
MEAN, STD = (110.0, 120.0, 130.0), (60.0, 50.0, 70.0)
CLASSES = ("ant", "bee", "cat", "dog", "elk")
OPTIONS = {"num_classes": 5, "width": 0.06, "stem": "small", "aux_heads": False}


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def reference(small_network: None) -> nn.Module:
    network = Twin().double().eval()
    randomise(network, 0)
    return network


def as_trained(name: str, reference: nn.Module, **options: object) -> gj.TrainedModel:
    model = gj.create_model(name, num_classes=5, dtype="float64", param_dtype="float64", **options)
    variables = gj.weights.from_torch(model, reference.state_dict())
    preprocessing = Preprocessing(size=SIZE, resize=SIZE, mean=MEAN, std=STD)
    return gj.TrainedModel(model, variables, preprocessing, CLASSES, "test")


@pytest.fixture(scope="module")
def trained(reference: nn.Module) -> gj.TrainedModel:
    return as_trained("small", reference)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(Image.fromarray(photograph("flower.jpg")).resize((SIZE, SIZE)))


def as_input(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(((image - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)[None])


def check_gradcam(
    trained: gj.TrainedModel, reference: nn.Module, image: np.ndarray, ours: str, theirs: str
) -> None:
    """Equations 1 and 2 of arXiv:1610.02391 with PyTorch's autograd, for every class."""
    kept: list[torch.Tensor] = []
    module = reference.get_submodule(theirs)
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = reference(as_input(image))["logits"][0]
    hook.remove()
    largest = 0.0
    for target, name in enumerate(CLASSES):
        (gradient,) = torch.autograd.grad(logits[target], kept, retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        small = torch.relu((weights * kept[0]).sum(1, keepdim=True))
        expected = nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear")[0, 0].detach()
        largest = max(largest, float(expected.max()))
        found = gj.explain(trained, image, target=target, layer=ours)
        assert found.layer == ours and found.class_name == name
        assert bool(found.note) == (not expected.any())
        np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6 * largest)
    assert largest > 0


@pytest.mark.parametrize("layer", ["mixed", "mixed/conv_3x3"])
def test_gradcam_is_pytorchs(
    trained: gj.TrainedModel, reference: nn.Module, image: np.ndarray, layer: str
) -> None:
    theirs = {"mixed/conv_3x3": "mixed.b2b"}.get(layer, layer)
    check_gradcam(trained, reference, image, layer, theirs)


@pytest.mark.proof
def test_gradcam_is_pytorchs_in_googlenet(image: np.ndarray) -> None:
    reference = NETWORKS["googlenet_bn"](**OPTIONS).double().eval()
    randomise(reference, 0)
    options = {name: value for name, value in OPTIONS.items() if name != "num_classes"}
    trained = as_trained("googlenet_bn", reference, **options)
    assert gj.explain(trained, image).layer == "inception_5b"
    for layer in ("inception_5b", "inception_4e"):
        check_gradcam(trained, reference, image, layer, layer.replace("_", ""))


def test_integrated_gradients_are_pytorchs_and_complete(
    trained: gj.TrainedModel, reference: nn.Module, image: np.ndarray
) -> None:
    """A gradient at a time, in steps that the batches don't divide."""
    steps, start = 21, as_input(np.broadcast_to(np.array((9, 8, 7)), image.shape))
    difference, total = as_input(image) - start, torch.zeros_like(start)
    for step in range(steps):
        point = (start + (step + 0.5) / steps * difference).requires_grad_()
        (gradient,) = torch.autograd.grad(reference(point)["logits"][0, TARGET], point)
        total += gradient
    expected = (difference * total / steps)[0].permute(1, 2, 0)
    options = {"steps": steps, "baseline": (9, 8, 7)}
    found = gj.explain(trained, image, "integrated", target="dog", **options)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())
    with torch.no_grad():
        ends = [float(reference(each)["logits"][0, TARGET]) for each in (as_input(image), start)]
    missed = abs(float(expected.sum()) - (ends[0] - ends[1]))
    assert found.note == f"the sum misses the logits' difference by {missed:.2g}"


def test_occlusion_is_a_slow_loop(
    trained: gj.TrainedModel, reference: nn.Module, image: np.ndarray
) -> None:
    def probability(inputs: torch.Tensor) -> float:
        with torch.no_grad():
            return float(torch.softmax(reference(inputs)["logits"], 1)[0, TARGET])

    inputs, starts = as_input(image), (0, 5, 10, 15, 17)
    whole, lost = probability(inputs), np.zeros((SIZE, SIZE, 2))
    for top in starts:
        for left in starts:
            covered = inputs.clone()
            covered[..., top : top + 7, left : left + 7] = 0
            gone = whole - probability(covered)
            lost[top : top + 7, left : left + 7] += gone, 1
    expected = lost[..., 0] / lost[..., 1]
    found = gj.explain(trained, image, "occlusion", target=TARGET, window=7, stride=5)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-12)
    assert found.probability == pytest.approx(whole)


def test_a_dream_raises_what_it_was_asked_to(trained: gj.TrainedModel, image: np.ndarray) -> None:
    model, variables, preprocessing = trained.model, trained.variables, trained.preprocessing
    for layer, channel, octaves in (("mixed", None, 2), ("conv2", 4, 1)):
        options = {"layer": layer, "channel": channel, "octaves": octaves, "steps": 4, "jitter": 2}
        found = gj.explain(trained, image, "deepdream", **options)
        again = gj.explain(trained, image, "deepdream", **options)
        assert (found.values == again.values).all() and found.values.dtype == np.uint8

        def answer(picture: np.ndarray, layer: str = layer, channel: int | None = channel) -> float:
            values = gj.TrainedModel(model, variables, preprocessing).features(picture, (layer,))
            return float(
                (values[layer] ** 2).sum() if channel is None else values[layer][..., channel].sum()
            )

        assert answer(found.values) > 1.2 * answer(image)


def test_filters_are_the_kernels_in_rgb(trained: gj.TrainedModel) -> None:
    kernels = trained.variables["params"]["conv1"]["kernel"]
    found = gj.explain(trained, method="filters")
    np.testing.assert_allclose(found.values, kernels, rtol=1e-6)
    assert found.image is None and found.layer == "conv1"
    bgr = gj.TrainedModel(
        trained.model, trained.variables, Preprocessing(size=SIZE, resize=SIZE, channel_order="bgr")
    )
    assert (gj.explain(bgr, method="filters").picture == found.picture[..., ::-1]).all()


def test_activations_are_the_strongest_channels(
    trained: gj.TrainedModel, image: np.ndarray
) -> None:
    maps = trained.features(image, ("mixed",))["mixed"][0]
    found = gj.explain(trained, image, "activations", layer="mixed", count=3)
    order = np.argsort(-maps.mean((0, 1)))[:3]
    np.testing.assert_allclose(found.values, maps[..., order].transpose(2, 0, 1), rtol=1e-6)
    assert found.note == f"channels {order[0]}, {order[1]}, {order[2]}"
    assert found._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "grad-cam"}, "did you mean 'gradcam'?"),
        ({"layr": "conv1"}, "gradcam: there is no option 'layr' (did you mean 'layer'?)"),
        ({"layer": "mixd"}, "expected one that is a map, such as mixed"),
        ({"layer": "last"}, "expected one that is a map"),
        ({"target": "bea"}, "there is no class 'bea' (did you mean 'bee'?)"),
        ({"target": 5}, "target: expected a whole number from 0 to 4, found 5"),
        ({"method": "deepdream", "scale": 1.0}, "scale: expected a number above 1"),
        ({"method": "deepdream", "channel": 900, "layer": "conv1"}, "expected 0 to 5 of conv1"),
        ({"method": "occlusion", "window": 99}, "window: expected a whole number from 1 to 24"),
        ({"method": "integrated", "baseline": (0, 0)}, "expected three numbers from 0 to 255"),
    ],
)
def test_what_is_wrong_is_said(
    trained: gj.TrainedModel, image: np.ndarray, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError) as error:
        gj.explain(trained, image, **arguments)
    assert message in str(error.value)


def test_the_command_writes_pictures_and_a_page(
    trained: gj.TrainedModel, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "net.safetensors", tmp_path / "out"
    trained.save(weights)
    for name in ("a<b>.png", "c.png"):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    command = ["explain", "--weights", str(weights), *map(str, sorted(tmp_path.glob("*.png")))]
    command += ["--class", "3", "--method", "gradcam,activations", "--layer", "mixed"]
    assert main([*command, "--output", str(out), "--json"]) == 1  # of the bad one
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert "bad.png: can't read the picture" in said.err
    assert [line["method"] for line in lines] == ["gradcam", "activations"] * 2
    assert {line["class"] for line in lines} == {"dog"} and lines[0]["layer"] == "mixed"
    for line in lines:
        with Image.open(line["picture"]) as picture:
            assert min(picture.size) >= 200
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6 and "a&lt;b&gt;.png" in page and "<b>" not in page
    assert "http" not in page


def test_the_commands_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["x.png", "--method", "gradcam,dream"], "expected one of gradcam, occlusion"),
        ([], "IMAGE: expected at least one picture for gradcam"),
        (["x.png", "--method", "integrated", "--layer", "conv1"], "there is no option 'layer'"),
        (["x.png", "--set", "steps"], "--set: expected NAME=VALUE"),
    ):
        assert main(["explain", "--weights", "nowhere", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert set(METHODS) >= {"gradcam", "occlusion", "integrated", "filters", "deepdream"}
