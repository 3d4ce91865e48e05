"""MultiBox as a task: crops with their boxes, the network, and what it proposes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.detection.multibox import MultiBox, _prepare, default_multibox_config
from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import create_model
from googlenet_jax.runtime.sharding import create_mesh
from googlenet_jax.training.config import resolve
from googlenet_jax.training.loop import train

PLAIN = Preprocessing(size=20, resize=20, mean=(0, 0, 0), std=(1, 1, 1))


def tiny_config(folder):
    config = default_multibox_config()
    config.model.name = "tiny_trunk"
    config.data.update(name="shapes", dir=str(folder), train_split="train", threads=1)
    config.preprocessing.update(size=16, resize=16)
    config.multibox.update(boxes=4, canvas=40)
    config.batch_size = 4
    config.eval_batch_size = 3  # 8 images: the last batch is padded
    config.duration = "4 steps"
    config.eval_every = config.checkpoint_every = "4 steps"
    config.log_every = "2 steps"
    return config


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_boxes_move_with_the_crop_and_the_mirror(seed, mirror):
    rng = np.random.default_rng(seed)
    canvas = np.zeros((6, 40, 40, 3), np.uint8)
    boxes = np.zeros((6, 2, 4), np.float32)
    for i in range(6):
        top, left = rng.integers(0, 24, 2)
        boxes[i, 0] = top, left, top + 16, left + 16
        canvas[i, top : top + 16, left : left + 16] = 255
    batch = {
        "canvas": canvas,
        "size": np.full((6, 2), 40, np.float32),
        "boxes": boxes,
        "valid": np.array([[True, False]] * 6),
    }
    result = prepare(mirror)(batch, jax.random.key(seed))
    assert not result["valid"][:, 1].any()
    for image, box, valid in zip(result["image"], result["boxes"], result["valid"], strict=True):
        lit = np.asarray(image[..., 0]) > 127
        if not valid[0]:
            continue
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        found = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 20
        np.testing.assert_allclose(found, box[0], atol=0.06)


@functools.cache  # compiled once for all examples
def prepare(mirror):
    return jax.jit(lambda batch, key: _prepare(PLAIN, jnp.float32, mirror, (0.6, 1.0), batch, key))


def test_an_object_that_the_crop_leaves_out_is_none():
    batch = {
        "canvas": np.zeros((64, 40, 40, 3), np.uint8),
        "size": np.full((64, 2), 40, np.float32),
        "boxes": np.tile(np.array([0, 0, 8, 8], np.float32), (64, 1, 1)),
        "valid": np.ones((64, 1), bool),
    }
    crop = jax.jit(lambda batch, key: _prepare(PLAIN, jnp.float32, False, (0.5, 0.5), batch, key))
    result = crop(batch, jax.random.key(0))
    assert 0 < result["valid"].sum() < 64
    boxes = result["boxes"][result["valid"]]
    assert boxes.min() >= 0 and boxes.max() <= 1
    # Of 8 × 8 pixels half or more is seen, on a crop of 20 × 20.
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) >= 32 / 400 - 1e-6).all()


def test_an_untrained_network_predicts_near_its_priors():
    priors = np.array([[0, 0, 0.5, 0.5], [0.2, 0.2, 0.9, 0.6], [0, 0, 1, 1]], np.float32)
    trunk = create_model("tiny_trunk", num_classes=1)
    network = MultiBox(trunk, 3, priors)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.jit(lambda: network.init(keys, images, train=False))()
    output = jax.jit(lambda variables: network.apply(variables, images, train=False))(variables)
    assert output.boxes.shape == (2, 3, 4) and output.logits.shape == (2, 3)
    assert np.abs(output.boxes - priors).max() < 0.2
    np.testing.assert_array_equal(variables["batch_stats"]["multibox"]["priors"], priors)
    assert set(variables["params"]["multibox"]) == {"reduce", "locations", "confidences"}


@pytest.fixture(scope="module")
def run(shapes_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multibox")
    train(tiny_config(shapes_dir), folder)
    return folder


def test_a_run_is_trained_and_proposes(run, shapes_dir, capsys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_locations", "loss_confidences"} <= lines[0].keys()
    assert 0 <= lines[-1]["recall"] <= 1 and lines[-1]["examples"] == 8
    command = ["proposals", "shapes", "--split", "test", "--methods", "multibox"]
    place = ["--multibox", str(run), "--data-dir", str(shapes_dir), "--json"]
    assert main([*command, *place]) == 0
    row = json.loads(capsys.readouterr().out)["table"][0]
    assert row["boxes"] == 4
    assert row["recall"] == pytest.approx(lines[-1]["recall"])


def test_a_run_of_another_kind_is_refused(run, capsys):
    assert main(["detect", "--weights", str(run), "--split", "test"]) == 1
    assert "found a run with task 'multibox'" in capsys.readouterr().err


def test_too_few_boxes_for_the_priors_are_named(shapes_dir):
    config = tiny_config(shapes_dir)
    config.multibox.boxes = 9
    resolved = resolve(config)
    with pytest.raises(UserError, match=r"multibox\.boxes: 9 priors need"):
        resolved.open(create_mesh())
