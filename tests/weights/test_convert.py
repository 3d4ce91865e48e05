"""Files of other frameworks to ours and back."""

import collections
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import unflatten_dict

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.imagenet import class_names
from googlenet_jax.errors import UserError
from googlenet_jax.verification.reference import NETWORKS
from googlenet_jax.weights.convert import convert, read_weights, write_weights
from googlenet_jax.weights.safetensors import load_weights
from googlenet_jax.weights.tree import expected_shapes, flatten
from tests.weights.caffe_file import caffemodel

pytestmark = pytest.mark.usefixtures("in_process")
NARROW: dict[str, Any] = {"width": 0.125, "num_classes": 5}
WIDTH = {"width": 0.125}


def state_dict(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = NETWORKS[name](**NARROW, **options)
    return {
        key: torch.rand(value.shape) + 0.1 if value.is_floating_point() else value + 7
        for key, value in network.state_dict().items()
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert np.asarray(array).dtype == np.asarray(other[path]).dtype
        assert np.asarray(array).tobytes() == np.asarray(other[path]).tobytes(), path


# ------------------------------------------------------------------------------------------ PyTorch


@pytest.mark.parametrize("aux", [True, False])
@pytest.mark.parametrize("name", ["googlenet_torchvision", "googlenet", "googlenet_bn"])
def test_pth_in_then_out_is_identical(name: str, aux: bool, tmp_path: Path) -> None:
    given = state_dict(name, aux_heads=aux)
    torch.save(given, tmp_path / "in.pth")
    loaded = convert(tmp_path / "in.pth", tmp_path / "ours.safetensors", name, options=WIDTH)
    assert (loaded.model.num_classes, loaded.model.aux_heads) == (5, aux)
    convert(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert back.keys() == given.keys()
    for key, tensor in given.items():
        assert back[key].dtype == tensor.dtype
        assert back[key].numpy().tobytes() == tensor.numpy().tobytes(), key


def test_pytorchs_safetensors_in_then_out_is_identical(tmp_path: Path) -> None:
    given = state_dict("googlenet_torchvision")
    safetensors.torch.save_file(given, tmp_path / "in.safetensors")
    convert(
        tmp_path / "in.safetensors",
        tmp_path / "ours.safetensors",
        "googlenet_torchvision",
        options=WIDTH,
    )
    convert(tmp_path / "ours.safetensors", tmp_path / "out.safetensors", to="safetensors")
    back = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(back[key], tensor) for key, tensor in given.items())
    assert back.keys() == given.keys()


def holds(given: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Checkpoints as trainers write them, each with the weights `given` inside."""
    parallel = {f"module.{key}": value for key, value in given.items()}
    compiled = {f"module._orig_mod.{key}": value for key, value in given.items()}
    return {
        "plain": collections.OrderedDict(given),
        "lightning": {
            "epoch": 3,
            "state_dict": parallel,
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        },
        "trainer": {
            "model": given,
            "optimizer": {"param_groups": [{"lr": 0.1}]},
            "args": {"name": "x"},
        },
        "compiled": {"model_state_dict": compiled, "epoch": 1},
        "only_ema": {"epoch": 1, "state_dict_ema": parallel},
        "with_step": {**given, "step": 12},
    }


@pytest.mark.parametrize("form", list(holds({})))
def test_checkpoints_that_hold_a_state_dict(form: str, tmp_path: Path) -> None:
    given = state_dict("googlenet_torchvision", aux_heads=False)
    torch.save(holds(given)[form], tmp_path / "c.pth")
    loaded = read_weights(tmp_path / "c.pth", "googlenet_torchvision", options=WIDTH)
    assert_same(loaded.variables, gj.weights.from_torch(loaded.model, given))


def test_ema_is_preferred_when_asked(tmp_path: Path) -> None:
    given = state_dict("googlenet_torchvision", aux_heads=False)
    average = {key: value * 2 for key, value in given.items()}
    torch.save({"state_dict": given, "model_ema": average}, tmp_path / "c.pth")
    for ema, expected in ((False, given), (True, average)):
        loaded = read_weights(tmp_path / "c.pth", "googlenet_torchvision", options=WIDTH, ema=ema)
        assert_same(loaded.variables, gj.weights.from_torch(loaded.model, expected))


def test_pytorchs_older_file_format(tmp_path: Path) -> None:
    given = state_dict("googlenet_torchvision", aux_heads=False)
    torch.save(given, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = read_weights(tmp_path / "old.pth", "googlenet_torchvision", options=WIDTH)
    assert_same(loaded.variables, gj.weights.from_torch(loaded.model, given))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64]
)  # bfloat16 goes out as exact float32
def test_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    given = {
        k: v.to(dtype) if v.is_floating_point() else v
        for k, v in state_dict("googlenet_torchvision", aux_heads=False).items()
    }
    torch.save(given, tmp_path / "in.pth")
    convert(
        tmp_path / "in.pth", tmp_path / "ours.safetensors", "googlenet_torchvision", options=WIDTH
    )
    convert(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(
        torch.equal(back[key], value) and back[key].dtype == value.dtype
        for key, value in given.items()
    )


def test_folded_batch_norms_become_the_identity_and_the_bias(tmp_path: Path) -> None:
    network = NETWORKS["googlenet_torchvision"](**NARROW, aux_heads=False).eval()
    network.load_state_dict(state_dict("googlenet_torchvision", aux_heads=False))
    for module in list(network.modules()):
        if hasattr(module, "conv") and hasattr(module, "bn"):
            module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = torch.nn.Identity()
    folded = network.state_dict()
    torch.save(folded, tmp_path / "folded.pth")
    loaded = read_weights(tmp_path / "folded.pth", "googlenet_torchvision", options=WIDTH)
    assert any("57 batch norms are folded" in note for note in loaded.notes)
    unit, statistics = (
        loaded.variables[c]["inception_4e"]["conv_5x5"] for c in ("params", "batch_stats")
    )
    np.testing.assert_array_equal(
        unit["kernel"].transpose(3, 2, 0, 1), folded["inception4e.branch3.1.conv.weight"].numpy()
    )
    x = np.linspace(-3, 3, 16, dtype=np.float32)[:, None]
    norm = unit["bn"]["scale"] / np.sqrt(
        statistics["bn"]["var"] + np.float32(loaded.model.bn_epsilon)
    )
    y = (x - statistics["bn"]["mean"]) * norm + unit["bn"]["bias"]
    np.testing.assert_allclose(
        y, x + folded["inception4e.branch3.1.conv.bias"].numpy(), rtol=1e-6, atol=1e-6
    )


# -------------------------------------------------------------------------------------------- Caffe

MODULES = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
# bvlc_googlenet's layers (its prototxt) and what PyTorch's form of the network calls them.
CAFFE = {
    "conv1/7x7_s2": "conv1.conv",
    "conv2/3x3_reduce": "conv2.conv",
    "conv2/3x3": "conv3.conv",
    **{f"inception_{m}/1x1": f"inception{m}.branch1.conv" for m in MODULES},
    **{f"inception_{m}/3x3_reduce": f"inception{m}.branch2.0.conv" for m in MODULES},
    **{f"inception_{m}/3x3": f"inception{m}.branch2.1.conv" for m in MODULES},
    **{f"inception_{m}/5x5_reduce": f"inception{m}.branch3.0.conv" for m in MODULES},
    **{f"inception_{m}/5x5": f"inception{m}.branch3.1.conv" for m in MODULES},
    **{f"inception_{m}/pool_proj": f"inception{m}.branch4.1.conv" for m in MODULES},
    "loss1/conv": "aux1.conv.conv",
    "loss1/fc": "aux1.fc1",
    "loss1/classifier": "aux1.fc2",
    "loss2/conv": "aux2.conv.conv",
    "loss2/fc": "aux2.fc1",
    "loss2/classifier": "aux2.fc2",
    "loss3/classifier": "fc",
}


def caffe_layers(given: dict[str, torch.Tensor]) -> dict[str, list[np.ndarray]]:
    present = {caffe: ours for caffe, ours in CAFFE.items() if f"{ours}.bias" in given}
    return {
        caffe: [given[f"{ours}.{part}"].numpy() for part in ("weight", "bias")]
        for caffe, ours in present.items()
    }


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("aux", [True, False])
def test_caffemodel(old: bool, aux: bool, tmp_path: Path) -> None:
    given = state_dict("googlenet", aux_heads=aux)
    layers = caffe_layers(given)
    assert sum(map(len, layers.values())) == len(given)
    (tmp_path / "g.caffemodel").write_bytes(caffemodel(layers, old))
    loaded = convert(
        tmp_path / "g.caffemodel", tmp_path / "ours.safetensors", "googlenet", options=WIDTH
    )
    assert_same(loaded.variables, gj.weights.from_torch(loaded.model, given))
    assert loaded.preprocessing is not None
    assert (
        loaded.preprocessing.channel_order,
        loaded.preprocessing.mean,
        loaded.preprocessing.std,
    ) == ("bgr", (104, 117, 123), (1, 1, 1))
    assert read_weights(tmp_path / "ours.safetensors").preprocessing == loaded.preprocessing


# ---------------------------------------------------------------------------- what is carried along


def test_class_names_and_preprocessing_go_into_our_file(tmp_path: Path) -> None:
    torch.save(state_dict("googlenet_torchvision", aux_heads=False), tmp_path / "in.pth")
    names = ["a", "b", "c", "d", "e"]
    options = {"options": WIDTH, "class_names": names, "preprocessing": {"size": 64, "resize": 72}}
    convert(tmp_path / "in.pth", tmp_path / "ours.safetensors", "googlenet_torchvision", **options)
    loaded = read_weights(tmp_path / "ours.safetensors")
    assert loaded.class_names == tuple(names)
    assert loaded.preprocessing is not None
    assert (
        loaded.preprocessing.size,
        loaded.preprocessing.resize,
        loaded.preprocessing.interpolation,
    ) == (64, 72, "bilinear_antialiased")


def test_imagenets_names_are_supposed_for_a_thousand_classes(tmp_path: Path) -> None:
    network = NETWORKS["googlenet_torchvision"](width=0.125, num_classes=1000, aux_heads=False)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    loaded = read_weights(tmp_path / "in.pth", "googlenet_torchvision", options=WIDTH)
    assert loaded.class_names == class_names()
    assert any("ImageNet" in note for note in loaded.notes)


# -------------------------------------------------------------------------------------- the command


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state_dict("googlenet_torchvision", aux_heads=False), tmp_path / "in.pth")
    goal = tmp_path / "ours.safetensors"
    command = [
        "convert",
        str(tmp_path / "in.pth"),
        str(goal),
        "--model",
        "googlenet_torchvision",
        "--option",
        "width=0.125",
        "--json",
    ]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    model, variables = load_weights(goal)
    assert result["model"] == "googlenet_torchvision"
    assert result["options"]["width"] == model.width == 0.125
    assert result["parameters"] == sum(
        np.asarray(a).size for path, a in flatten(variables).items() if path[0] == "params"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "googlenet_torchvision", "--option", "width=1"], "found \\[8, 3, 7, 7\\]"),
        (["--model", "googlenet_slim"], "googlenet_slim has no scales"),
        (["--model", "googlenet_bnn"], "did you mean 'googlenet_bn'"),
        (
            ["--model", "googlenet_torchvision", "--option", "width"],
            "--option: expected NAME=VALUE",
        ),
        (
            ["--model", "googlenet_torchvision", "--from", "keras"],
            "its content is of kind 'pytorch'",
        ),
        (["--model", "googlenet_torchvision", "--from", "onnx"], "--from: expected one of"),
        (["--model", "googlenet_torchvision", "--to", "onnx"], "--to: expected one of"),
        (
            ["--model", "googlenet_torchvision", "--option", "width=0.125", "--background", "drop"],
            "1,001 classes",
        ),
        (
            [
                "--model",
                "googlenet_torchvision",
                "--option",
                "width=0.125",
                "--preprocessing",
                "sise=3",
            ],
            "no field 'sise'",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state_dict("googlenet_torchvision", aux_heads=False), tmp_path / "in.pth")
    assert (
        main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "ours.safetensors"), *arguments])
        == 1
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_a_network_that_keras_does_not_have(tmp_path: Path) -> None:
    torch.save(state_dict("googlenet_torchvision", aux_heads=False), tmp_path / "in.pth")
    loaded = read_weights(tmp_path / "in.pth", "googlenet_torchvision", options=WIDTH)
    with pytest.raises(UserError, match="Keras has no such network as googlenet_torchvision"):
        write_weights(tmp_path / "out.weights.h5", loaded)
    assert not (tmp_path / "out.weights.h5").exists()


def test_a_narrow_network_comes_back_from_keras_with_its_classifier(tmp_path: Path) -> None:
    model = gj.create_model("inception_v3", flavour="keras", width=0.125, num_classes=7)
    rng = np.random.default_rng(0)
    shapes = expected_shapes(model)
    flat = {path: rng.uniform(0.1, 1, shape).astype(np.float32) for path, shape in shapes.items()}
    gj.save_weights(tmp_path / "ours.safetensors", model, unflatten_dict(flat))
    options = ["--model", "inception_v3", "--flavour", "keras", "--option", "width=0.125"]
    assert main(["convert", f"{tmp_path}/ours.safetensors", f"{tmp_path}/w.weights.h5"]) == 0
    assert (
        main(["convert", f"{tmp_path}/w.weights.h5", f"{tmp_path}/back.safetensors", *options]) == 0
    )
    back = flatten(load_weights(tmp_path / "back.safetensors")[1])
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[path], flat[path]) for path in flat)
