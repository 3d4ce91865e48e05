"""Files that the other libraries wrote, read by name, and files of ours that they load."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from googlenet_jax.weights.convert import convert, read_weights, write_weights
from googlenet_jax.weights.tree import flatten

HERE = Path(__file__).parent
needs_slim = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tf_keras", "tf_slim")),
    reason="needs tensorflow, tf_keras, tf_slim: pip install -e '.[live]'",
)
needs_keras = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None or importlib.util.find_spec("h5py") is None,
    reason="needs keras and h5py: pip install -e '.[live]'",
)


def run(script: str, *arguments: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / script), *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    ours, expected = flatten(ours), flatten(expected)
    assert ours.keys() == expected.keys()
    for path, array in ours.items():
        assert array.dtype == expected[path].dtype
        assert array.tobytes() == np.ascontiguousarray(expected[path]).tobytes(), path


# --------------------------------------------------------------------------------------- TF-slim


@needs_slim
@pytest.mark.proof
@pytest.mark.parametrize(
    ("network", "model"),
    [
        ("inception_v1", "googlenet_slim"),
        ("inception_v2", "bn_inception"),
        ("inception_v3", "inception_v3"),
    ],
)
def test_slims_checkpoints(network: str, model: str, tmp_path: Path) -> None:
    """The other live tests hold their own conversion of the same variables to TF-slim's logits."""
    run("slim_checkpoint.py", network, str(tmp_path / "model.ckpt"), "1001")
    with np.load(tmp_path / "model.ckpt.npz") as file:
        values = {name: file[name] for name in file.files}
    for ema, kind in ((False, "v:"), (True, "e:")):
        loaded = read_weights(tmp_path / "model.ckpt", model, ema=ema)
        given = {name[2:]: v for name, v in values.items() if name.startswith(kind)}
        given.pop("global_step", None)
        assert_same(loaded.variables, slim_variables(network, given))
        assert loaded.model.num_classes == len(loaded.class_names or ()) == 1001
        assert loaded.preprocessing is not None and loaded.preprocessing.class_offset == 1
    dropped = read_weights(tmp_path / "model.ckpt", model, ema=True, background="drop")
    kept, cut = (w.variables["params"]["head"] for w in (loaded, dropped))
    np.testing.assert_array_equal(cut["kernel"], kept["kernel"][:, 1:])
    np.testing.assert_array_equal(cut["bias"], kept["bias"][1:])
    assert dropped.preprocessing is not None and dropped.preprocessing.class_offset == 0


def slim_variables(network: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """The variables by the other live tests' own rules, which go by the order of slim's units."""
    if network == "inception_v1":
        from flax.traverse_util import unflatten_dict

        from tests.live.test_slim_v1 import variable_path

        paths = {name: variable_path(name) for name in values}
        logits = "Logits/Conv2d_0c_1x1/weights"
        return unflatten_dict(
            {paths[n]: v[0, 0] if n.endswith(logits) else v for n, v in values.items()}
        )
    from tests.live import test_inception_slim as live

    if network == "inception_v2":
        return live.convert(values, live.V2_STEM, live.v2_units)
    return live.convert(values, live.V3_STEM, live.v3_units)


# ----------------------------------------------------------------------------------------- Keras


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    run("keras_files.py", "write", str(folder))
    return folder


@needs_keras
@pytest.mark.proof
def test_kerass_files_in_and_out(keras_folder: Path, tmp_path: Path) -> None:
    from tests.live.test_inception_keras import convert as by_order

    with np.load(keras_folder / "arrays.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for form in ("k.weights.h5", "k.keras", "k.h5"):
        loaded = read_weights(keras_folder / form, "inception_v3")
        assert_same(loaded.variables, by_order(arrays))
    assert loaded.preprocessing is not None and loaded.preprocessing.mean == (127.5,) * 3

    write_weights(tmp_path / "ours.safetensors", loaded)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.weights.h5")
    run("keras_files.py", "load", str(tmp_path / "back.weights.h5"), str(tmp_path / "back.npz"))
    with np.load(tmp_path / "back.npz") as file:
        back = {name: file[name] for name in file.files}
    assert back.keys() == arrays.keys()
    assert all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)

    notop = read_weights(
        keras_folder / "notop.weights.h5", "inception_v3", options={"num_classes": 7}
    )
    assert any("one of 7 classes was initialised anew" in note for note in notop.notes)
    assert notop.class_names is None
    for variables in (loaded.variables, notop.variables):
        del variables["params"]["head"]
    assert_same(notop.variables, loaded.variables)


# --------------------------------------------------------------------------------------- PyTorch


def torchvision_like(name: str) -> tuple[Any, str, dict[str, Any]]:
    """A public implementation of PyTorch's, and what its files are here."""
    from tests.live.test_inception_torch import load

    if name == "timm":
        net = load("timm").create_model("inception_v3", pretrained=False, aux_logits=False)
        return net, "inception_v3", {}
    if name == "pytorch-fid":
        fid = load("pytorch_fid.inception")
        net = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        return net, "inception_v3", {"flavour": "fid"}
    if name == "pretrainedmodels":
        net = load("pretrainedmodels.models.bninception").BNInception(num_classes=1000)
        return net, "bn_inception", {}
    models = load("torchvision.models")
    aux = name.endswith("aux")
    kind = name.split()[1]
    net = getattr(models, kind)(weights=None, init_weights=False, aux_logits=aux)
    return net, {"googlenet": "googlenet_torchvision"}.get(kind, kind), {}


@pytest.mark.proof
@pytest.mark.parametrize(
    "name",
    [
        "torchvision googlenet",
        "torchvision googlenet aux",
        "torchvision inception_v3",
        "torchvision inception_v3 aux",
        "timm",
        "pytorch-fid",
        "pretrainedmodels",
    ],
)
def test_pytorchs_files_in_and_out(name: str, tmp_path: Path) -> None:
    net, model, options = torchvision_like(name)
    state_dict = net.state_dict()
    torch.save(state_dict, tmp_path / "in.pth")
    loaded = convert(tmp_path / "in.pth", tmp_path / "ours.safetensors", model, options=options)
    assert loaded.model.aux_heads == any(key.lower().startswith("aux") for key in state_dict)
    convert(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    net.load_state_dict(back, strict=True)
    for key, value in state_dict.items():
        assert back[key].dtype == value.dtype
        assert back[key].numpy().tobytes() == value.numpy().tobytes(), key
