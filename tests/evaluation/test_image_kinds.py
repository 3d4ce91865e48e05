"""Networks of one, two and six channels, of 16 bits and floats: each command takes the images that
such a network was trained on, or refuses in one line.
"""

import json
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.image_kind import ImageKind, shown
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import Ensemble
from googlenet_jax.evaluation.pictures import read_picture
from googlenet_jax.runtime import process
from googlenet_jax.runtime.sharding import create_mesh
from googlenet_jax.weights.trained_model import TrainedModel
from tests.training.tiny_run import Tiny

TOP = {"uint8": 255, "uint16": 2**16 - 1, "float32": 1.0}
KINDS = [ImageKind(1), ImageKind(2), ImageKind(1, "uint16"), ImageKind(6, "float32")]
DIGITS = tuple(map(str, range(10)))


def an_image(kind: ImageKind, height: int = 18, width: int = 22) -> np.ndarray:
    values = np.random.default_rng(0).random((height, width, kind.channels))
    return (TOP[kind.dtype] * values).astype(kind.dtype)


@pytest.fixture(scope="module")
def networks(tmp_path_factory, small_network):
    """A weight file of each kind."""
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    for kind in (*KINDS, ImageKind(3)):
        model = gj.create_model("small", num_classes=10, in_channels=kind.channels)
        images = np.zeros((1, 14, 14, kind.channels), np.float32)
        variables = jax.jit(lambda key, model=model, x=images: model.init(key, x, train=False))(
            jax.random.key(0)
        )
        half = TOP[kind.dtype] / 2
        preprocessing = Preprocessing(14, 16, mean=(half,), std=(half,), dtype=kind.dtype)
        found[kind] = folder / f"{kind.channels}-{kind.dtype}.safetensors"
        gj.weights.save_weights(
            found[kind], model, variables, preprocessing=preprocessing.to_dict(), class_names=DIGITS
        )
    return found


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(process, "prepare", lambda: ())  # it sets JAX up for a whole process


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(each, marks=pytest.mark.proof) for each in KINDS[:3]), KINDS[3]],
    ids=str,
)
def test_the_commands_take_what_the_network_takes(networks, kind, tmp_path, capsys):
    weights, image = str(networks[kind]), an_image(kind)
    np.save(tmp_path / "image.npy", image)
    grid, given = tmp_path / "grid.png", str(tmp_path / "image.npy")
    assert main(["predict", "--weights", weights, given, "--json", "--grid", str(grid)]) == 0
    (said,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    trained = gj.load(weights)
    (expected,) = trained.predict([image])
    assert said["predictions"][0]["class_name"] == expected[0].class_name and grid.exists()
    logits = trained.logits([image])
    assert np.array_equal(trained.logits([given]), logits) and logits.shape == (1, 10)
    output = tmp_path / "explained"
    methods = "gradcam,integrated,occlusion,activations,filters"
    argv = ["--weights", weights, given, "--method", methods, "--output", str(output)]
    assert main(["explain", *argv]) == 0
    assert len(list(output.glob("*.png"))) == 5 and (output / "index.html").exists()
    artifact = tmp_path / "network.stablehlo"
    assert main(["export", "small", "--weights", weights, "--output", str(artifact)]) == 0
    about = json.loads(artifact.with_suffix(".json").read_text())
    assert about["input"]["dtype"] == kind.dtype
    assert about["input"]["shape"] == ["b", 14, 14, kind.channels]


def refusal(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "googlenet-jax:" in each]
    assert "unexpected" not in line
    return line


def test_other_images_are_refused_in_one_line(networks, data_dir, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(an_image(ImageKind(3))).save(tmp_path / "pictures" / "rgb.png")
    np.save(tmp_path / "rgb.npy", an_image(ImageKind(3)))
    data = ["--data-dir", str(data_dir)]
    for kind in (ImageKind(1, "uint16"), ImageKind(6, "float32")):
        weights = str(networks[kind])
        whose = f"expected {kind}, as {weights} was trained on, found uint8 images of 1 channel"
        evaluate = ["evaluate", "--weights", weights, "--data", "digits", "--split", "test[:4]"]
        assert whose in refusal(capsys, *evaluate, *data)
        splits = ["--train-split", "train[:8]", "--split", "test[:4]"]
        assert whose in refusal(capsys, "probe", "digits", "--weights", weights, *splits, *data)
        picture, output = str(tmp_path / "pictures" / "rgb.png"), str(tmp_path / "out.npz")
        argv = [str(tmp_path / "pictures"), "--output", output, "--layer", "conv1"]
        features = refusal(capsys, "features", "--model", weights, *argv)
        assert f"takes {kind}, and these commands read uint8 images of 3 channels" in features
        assert f"{kind.dtype}" in refusal(capsys, "predict", "--weights", weights, picture)
        array = str(tmp_path / "rgb.npy")
        refused = refusal(capsys, "predict", "--weights", weights, array)
        assert f"expected an array [H, W, {kind.channels}] of {kind.dtype}, found" in refused
        ten = refusal(capsys, "predict", "--weights", weights, array, "--crops", "10")
        assert "crops: 10 are cut of uint8 images" in ten
    both = f"{networks[ImageKind(1)]},{networks[ImageKind(3)]}"
    assert "members of one ensemble take the same" in refusal(
        capsys, "predict", "--weights", both, str(tmp_path / "pictures" / "rgb.png")
    )
    weights = str(networks[ImageKind(2)])
    np.save(tmp_path / "two.npy", an_image(ImageKind(2)))
    argv = [str(tmp_path / "two.npy"), "--method", "deepdream", "--output", str(tmp_path / "d")]
    assert "deepdream: changes uint8 images of 3" in refusal(
        capsys, "explain", "--weights", weights, *argv
    )


@pytest.mark.parametrize("kind", [ImageKind(1), ImageKind(3)], ids=str)
def test_grey_images_are_evaluated_by_networks_of_one_channel_and_of_three(
    networks, data_dir, kind
):
    source, trained = load_source("digits", "test[:4]", data_dir), gj.load(networks[kind])
    images = [example["image"] for example in source.read(range(4))]
    mesh = create_mesh(jax.devices()[:1])
    for crops in (1, 10):
        ensemble = Ensemble([trained], crops=crops, batch_size=44, mesh=mesh)
        values = ensemble.fetch(ensemble.launch(ensemble.prepare(images)), 4)[:, 0, 0]
        logits = trained.logits(images)
        expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_pictures_are_read_as_the_network_takes_them(tmp_path):
    sixteen = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    cv2.imwrite(str(tmp_path / "16.png"), sixteen)
    cv2.imwrite(str(tmp_path / "f.tif"), sixteen.astype(np.float32) / 7)
    Image.fromarray((sixteen >> 8).astype(np.uint8)).save(tmp_path / "8.png")
    deep, floats = ImageKind(1, "uint16"), ImageKind(1, "float32")
    assert np.array_equal(read_picture(tmp_path / "16.png", deep)[..., 0], sixteen)
    assert np.array_equal(read_picture(tmp_path / "16.png", ImageKind(1))[..., 0], sixteen >> 8)
    assert read_picture(tmp_path / "16.png", ImageKind(3, "uint16")).shape == (6, 10, 3)
    np.testing.assert_array_equal(
        read_picture(tmp_path / "f.tif", floats)[..., 0], sixteen.astype(np.float32) / 7
    )
    with Image.open(tmp_path / "16.png") as image:
        assert np.array_equal(read_picture(image, deep)[..., 0], sixteen)
    with Image.open(tmp_path / "8.png") as image:
        assert read_picture(image, ImageKind(1)).shape == (6, 10, 1)
        with pytest.raises(UserError, match="expected uint16 images of 1 channel, found mode L"):
            read_picture(image, deep)
    for name, kind, said in (
        ("8.png", deep, "expected pixels of uint16, found uint8"),
        ("16.png", floats, "expected pixels of float32, found uint16"),
        ("8.png", ImageKind(2), "expected uint8 images of 2 channels, which a NumPy file"),
        ("missing.npy", deep, "can't read the array: .*No such file"),
    ):
        with pytest.raises(UserError, match=said):
            read_picture(tmp_path / name, kind)
    Path(tmp_path / "broken.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=re.escape("broken.npy: can't read the array")):
        read_picture(tmp_path / "broken.npy", deep)


@pytest.mark.parametrize("kind", [*KINDS, ImageKind(3), ImageKind(3, "uint16")], ids=str)
def test_every_image_can_be_shown(kind):
    picture = shown(an_image(kind))
    assert picture.shape == (18, 22, 3) and picture.dtype == np.uint8 and picture.std() > 10


def test_a_network_that_names_no_activations_is_said_so():
    model = Tiny(num_classes=10, in_channels=1)
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, 8, 8, 1)), train=False))(
        jax.random.key(0)
    )
    trained = TrainedModel(model, variables, Preprocessing(8, 8, mean=(128,), std=(128,)))
    with pytest.raises(UserError, match="Tiny has no endpoint 'features'"):
        trained.features(an_image(ImageKind(1)))
    with pytest.raises(UserError, match="Tiny names no activations that are maps"):
        gj.explain(trained, an_image(ImageKind(1)))
