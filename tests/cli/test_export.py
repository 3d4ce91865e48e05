"""`export`: what is written runs without this project."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Output
from googlenet_jax.models.registry import option_defaults
from googlenet_jax.weights.export import largest_difference
from googlenet_jax.weights.safetensors import load_weights

PREPROCESSING = Preprocessing(
    size=16, resize=18, channel_order="bgr", mean=(100, 110, 120), std=(50, 60, 70)
)
CLASSES = ["zero", "one", "two"]
# What a user of the artifact writes.
RUN = """
import sys, pathlib, numpy
from jax import export
artifact = export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
print(sorted(artifact.platforms))
images = numpy.load(sys.argv[2])
for count in (1, 5):
    numpy.save(f"{sys.argv[3]}/{count}.npy", artifact.call(images[:count]))
print("googlenet_jax" in sys.modules, "flax" in sys.modules)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = gj.create_model("googlenet_bn", num_classes=3, width=0.1, stem="small")
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        lambda: model.init({"params": key, "dropout": key}, jnp.zeros((1, 16, 16, 3)), train=False)
    )
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.05, 0.4, leaf.shape).astype(leaf.dtype), shapes
    )
    path = tmp_path_factory.mktemp("weights") / "bn.safetensors"
    gj.save_weights(path, model, variables, PREPROCESSING.to_dict(), CLASSES)
    return path


def test_the_artifact_gives_the_networks_logits_without_this_project(weights, tmp_path, capsys):
    out = tmp_path / "bn.stablehlo"
    assert (
        main(["export", "googlenet_bn", "--weights", str(weights), "--output", str(out), "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == out.stat().st_size and report["largest_difference"] < 1e-4
    assert report["loadable"].startswith("by JAX releases")

    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [
        sys.executable,
        "-I",
        "-c",
        RUN,
        str(out),
        str(tmp_path / "images.npy"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["['cpu', 'cuda', 'tpu']", "False False"], done.stderr
    model, variables = load_weights(weights)
    apply = jax.jit(functools.partial(model.apply, train=False))
    expected = apply(variables, normalize(images, PREPROCESSING)).logits
    for count in (1, 5):  # a batch of any size
        np.testing.assert_allclose(np.load(tmp_path / f"{count}.npy"), expected[:count], rtol=1e-4)

    about = json.loads(out.with_suffix(".json").read_text())
    assert about["class_names"] == CLASSES and about["input"]["shape"] == ["b", 16, 16, 3]
    assert Preprocessing.from_dict(about["preprocessing"]) == PREPROCESSING
    assert "up to 6 months newer" in about["loadable"]


@pytest.fixture(scope="module")
def onnx() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


@pytest.mark.proof
def test_onnx_gives_the_networks_logits(onnx, weights, tmp_path, capsys):
    import onnxruntime

    out = tmp_path / "bn.onnx"
    command = ["export", "googlenet_bn", "--weights", str(weights), "--format", "onnx", "--json"]
    assert main([*command, "--output", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["largest_difference"] < 1e-5 and report["bytes"] == out.stat().st_size
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    model, variables = load_weights(weights)
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    expected = jax.jit(functools.partial(model.apply, train=False))(
        variables, normalize(images, PREPROCESSING)
    ).logits
    (found,) = session.run(None, {"images": images})  # a batch of any size
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["class_names"] == CLASSES and "platforms" not in about
    assert Preprocessing.from_dict(about["preprocessing"]) == PREPROCESSING


@pytest.mark.proof
@pytest.mark.parametrize("name", gj.list_models())
def test_onnx_of_every_network(onnx, name, tmp_path):
    from googlenet_jax.verification.to_onnx import check_onnx, write_onnx

    rethought = name in ("inception_v2", "inception_v3")
    size, known = 75 if rethought else 32, option_defaults(name)
    options = {"aux_heads": False} | ({} if rethought else {"stem": "small"})
    options = {n: value for n, value in options.items() if n in known}
    model = gj.create_model(name, width=0.125, num_classes=10, **options)
    key = jax.random.key(0)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init({"params": key, "dropout": key}, jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # no scale is one, no variance either
        lambda leaf: leaf * rng.uniform(0.7, 1.3, leaf.shape).astype(leaf.dtype), variables
    )
    network = (model, variables, dataclasses.replace(PREPROCESSING, size=size, resize=size))
    write_onnx(tmp_path / "net.onnx", *network)
    assert check_onnx(tmp_path / "net.onnx", *network) < 1e-5


def test_onnx_of_a_network_without_a_reference_is_refused(onnx, tmp_path):
    from googlenet_jax.verification.to_onnx import write_onnx

    model = gj.create_model("googlenet_bn", activation="silu")
    with pytest.raises(
        UserError, match=r"goes through PyTorch, and the reference .* no activation"
    ):
        write_onnx(tmp_path / "net.onnx", model, {}, PREPROCESSING)


@pytest.mark.parametrize(
    ("scale", "given", "difference"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, np.inf), (1.0, np.nan, np.inf), (np.nan, 1.0, np.inf)],
)
def test_numbers_that_are_not_numbers_are_a_difference(scale, given, difference):
    class Constant(nn.Module):
        dtype = jnp.float32

        def __call__(self, images, train):
            return Output(jnp.full((len(images), 2), scale), {}, features=None)

    run = lambda batches: {n: np.full((len(b), 2), given) for n, b in batches.items()}  # noqa: E731
    assert largest_difference(run, Constant(), {}, PREPROCESSING) == difference


def test_an_artifact_that_differs_is_not_written(weights, tmp_path, capsys, monkeypatch):
    from googlenet_jax.weights import export

    monkeypatch.setattr(export, "export_model", lambda *_: b"damaged")
    out = tmp_path / "bn.stablehlo"
    out.write_bytes(b"the old one")
    assert main(["export", "googlenet_bn", "--weights", str(weights), "--output", str(out)]) == 1
    assert "does not run by itself" in capsys.readouterr().err
    assert out.read_bytes() == b"the old one" and [file.name for file in tmp_path.iterdir()] == [
        "bn.stablehlo"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["googlenet", "--weights", "{}"], "expected weights of googlenet, found googlenet_bn's"),
        (["googlenett", "--weights", "{}"], "did you mean 'googlenet'?"),
        (["googlenet_bn", "--weights", "{},{}"], "--weights: expected one model, found 2"),
        (["googlenet_bn", "--weights", "nowhere"], "'nowhere' is no file"),
        (["googlenet_bn", "--weights", "{}", "--output", "x.json"], "another ending than .json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(weights, capsys, arguments, message):
    assert main(["export", *(argument.replace("{}", str(weights)) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
