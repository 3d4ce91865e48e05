"""configs/finetune_folder.py on a class or two with five pictures each."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.models.network import variable_shapes
from googlenet_jax.models.registry import create_model
from googlenet_jax.training.loop import train
from googlenet_jax.weights.safetensors import save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "finetune_folder.py"


@pytest.fixture
def trunk(tmp_path):
    """A tiny network of random weights, for images of 8×8."""
    model = create_model("googlenet_plain", num_classes=7, width=0.05, stem="small")
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 1.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(
            np.float32
        ),
        variable_shapes(model, 8),
    )
    path = tmp_path / "trunk.safetensors"
    preprocessing = Preprocessing(size=8, resize=8)
    save_weights(path, model, variables, preprocessing=preprocessing.to_dict())
    return path


@pytest.mark.proof
@pytest.mark.parametrize("classes", [1, 2])
def test_a_class_or_two_with_five_pictures_work(monkeypatch, tmp_path, trunk, classes):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for label in range(classes):
        for number in range(5):
            folder = tmp_path / "few" / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (16, 16, 3)) + 190 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    spec = importlib.util.spec_from_file_location("finetune_folder", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(str(tmp_path / "few"))
    config.init_from = str(trunk)
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    raw, averaged = (each for each in lines[-3:] if each["split"] == "validation")
    assert raw["step"] == averaged["step"] == 300
    assert raw["examples"] == classes
    assert raw["top1"] == averaged["top1"] == 1
    assert raw["loss"] == pytest.approx(averaged["loss"], abs=0.02)
