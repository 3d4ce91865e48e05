"""`gj.explain` and `googlenet-jax explain` on a small network and real photographs."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.interpretability import dreams
from googlenet_jax.weights.trained_model import TrainedModel
from tests.data.photographs import photograph

NAMES = ("background", "temple", "flower", "<b>&")


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    """A narrow network whose labels begin after a background class."""
    model = gj.create_model(
        "googlenet_bn", num_classes=4, width=0.06, stem="small", aux_heads=False
    )
    variables = model.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)), train=False)
    preprocessing = Preprocessing(size=32, resize=36, class_offset=1, channel_order="bgr")
    return TrainedModel(model, dict(variables), preprocessing, NAMES, "small")


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("integrated", (32, 32, 3)),
        ("occlusion", (15, 15)),
        ("filters", (9, 32, 32, 3)),
        ("deepdream", (32, 32, 3)),
    ],
)
def test_each_method_gives_its_values_and_a_picture(
    trained: TrainedModel, method: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreams, "OCTAVES", 1)
    (found,) = gj.explain(trained, photograph(), method)
    assert found.values.shape == shape and np.isfinite(found.values).all()
    assert found.picture.dtype == np.uint8 and min(found.picture.shape[:2]) >= 200
    assert found.picture.std() > 5
    for ours, theirs in zip(found.predictions, trained.predict(photograph())[0], strict=True):
        assert ours.class_name == theirs.class_name
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)


def test_the_class_is_the_likeliest_or_the_one_asked_for(trained: TrainedModel) -> None:
    first, second = gj.explain(trained, [photograph(), photograph("flower.jpg")])
    assert first.class_name == first.predictions[0].class_name != "background"
    assert first.values.ndim == 2 and first.endpoint == "inception_5b"
    assert not np.array_equal(first.values, second.values)
    by_name, by_number = (
        gj.explain(trained, photograph(), class_name=each)[0] for each in ("flower", 1)
    )
    assert by_name.class_name == by_number.class_name == "flower"
    np.testing.assert_array_equal(by_name.values, by_number.values)


def test_activations_are_the_endpoints(trained: TrainedModel) -> None:
    (found,) = gj.explain(trained, photograph(), "activations", endpoint="inception_3a/conv_3x3")
    expected = trained.features(photograph(), names=("inception_3a/conv_3x3",))
    np.testing.assert_allclose(
        found.values, expected["inception_3a/conv_3x3"][0].transpose(2, 0, 1), atol=1e-5
    )
    means = found.values.mean((1, 2))
    assert means[found.channels[0]] == means.max()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "gradcan"}, "gradcam"),
        ({"endpoint": "inception_9z"}, "inception_"),
        ({"method": "occlusion", "endpoint": "conv1"}, "leave it out"),
        ({"class_name": "flowr"}, "flower"),
        ({"class_name": 3}, "from 0 to 2"),
    ],
)
def test_what_is_asked_wrong_is_said(trained: TrainedModel, given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        gj.explain(trained, photograph(), **given)


def test_the_command_writes_pictures_and_a_page(
    trained: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    trained.save(weights)
    for name in ("a.png", "<i>.png"):
        Image.fromarray(photograph()).save(tmp_path / name)
    argv = ["explain", "--weights", str(weights), str(tmp_path / "*.png"), "--json"]
    assert (
        main([*argv, "--class", "flower", "--output", str(out), "--grid", str(tmp_path / "g.jpg")])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class_name"] for line in lines] == ["flower", "flower"]
    for line in lines:
        with Image.open(line["picture"]) as image:
            assert min(image.size) >= 224
    with Image.open(tmp_path / "g.jpg") as grid:
        assert grid.width > 400
    page = (out / "index.html").read_text()
    assert page.count("<img") == 4 and "<i>" not in page and "http" not in page
