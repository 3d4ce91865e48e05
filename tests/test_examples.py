"""The programs under examples/ run, narrow, and do what they say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.cli.train import read_config
from googlenet_jax.training.writers import read_metrics

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.proof
TINY = {"num_classes": 10, "width": 0.05, "aux_heads": False}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hessian_vector_product():
    found = load("hessian_vector_product").main(steps=3, **TINY)
    assert np.isfinite(found).all() and abs(found[-1]) >= abs(found[0])


def test_deep_inversion():
    found = load("deep_inversion").main(steps=5, **TINY)
    assert found[-1] < found[0]


def test_per_example_gradients():
    norms = np.asarray(load("per_example_gradients").main(width=0.05))
    assert norms.shape == (4,) and (norms > 0).all() and len(set(norms.tolist())) == 4


def test_nnx_training():
    found = load("nnx_training").main(steps=3, **TINY)
    assert found[-1] < found[0]


def test_an_fsdp_step_is_the_same_on_one_device_and_on_two():
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import fsdp_step;"
        " print(*fsdp_step.main(width=0.05))"
    )
    found = []
    for count in (1, 2):
        flags = f"--xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"{count} devices" in done.stdout
        found.append([float(word) for word in done.stdout.splitlines()[-1].split()])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)
    assert found[0][1] < found[0][0]


def small_digits(data_dir, config):
    config.data.update(dir=str(data_dir), train_split="train[:64]", eval_splits=("test[:40]",))
    config.model.options.width = 0.05
    config.update(batch_size=16, eval_batch_size=20, duration="2 steps", log_every="1 steps")
    config.update(eval_every="2 steps", checkpoint_every="2 steps")
    config.schedule.warmup = "0 steps"
    return config


def test_simclr_is_a_task_whose_network_is_tuned_afterwards(tmp_path, data_dir):
    simclr = load("simclr")
    gj.train(small_digits(data_dir, simclr.get_config()), tmp_path / "simclr")
    lines = read_metrics(tmp_path / "simclr" / "metrics.jsonl")
    assert "partners_found" in lines[0] and 0 <= lines[-1]["top1"] <= 1
    assert gj.load(tmp_path / "simclr").features(np.zeros((2, 8, 8, 3), np.uint8)).shape[0] == 2
    config = small_digits(data_dir, read_config("digits", []))
    config.init_from, config.data.per_class = str(tmp_path / "simclr"), 2
    gj.train(config, tmp_path / "tuned")
    same, other = jax.random.normal(jax.random.key(0), (2, 8, 1, 4))
    together = jnp.concatenate([same, same], axis=1)
    apart = jnp.concatenate([same, other], axis=1)
    assert simclr.nt_xent(together, {}, 0.2)[0] < simclr.nt_xent(apart, {}, 0.2)[0]


def test_distillation_learns_what_the_teacher_answers(tmp_path, data_dir, monkeypatch):
    distillation = load("distillation")
    gj.train(small_digits(data_dir, read_config("digits", [])), tmp_path / "teacher")
    monkeypatch.setenv("TEACHER", str(tmp_path / "teacher"))
    config = small_digits(data_dir, read_config("digits", []))
    config.loss.name, config.augment.transforms = "distillation", ("teacher",)
    gj.train(config, tmp_path / "student")
    lines = read_metrics(tmp_path / "student" / "metrics.jsonl")
    assert lines[0]["loss_teacher"] > 0
    logits = jnp.array([[1.0, 2.0]])
    batch = {"label": jnp.array([1]), "teacher": logits}

    def gradient(logits):
        return jax.grad(lambda x: distillation.distillation(gj.Output(x, {}), batch, share=1.0)[0])(
            logits
        )

    at, off = gradient(logits), gradient(logits + jnp.array([[0.5, 0]]))
    assert abs(at).max() < 1e-6 < abs(off).max()


def test_the_tour_runs(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", 4)
    nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


def test_digits_in_photographs(tmp_path):
    load("digits_in_photographs").main(tmp_path, {"train": 30, "val": 6})
    pictures = list(tmp_path.glob("*/*/*.png"))
    assert len(pictures) == 36 and len({picture.read_bytes() for picture in pictures}) == 36
    assert {picture.parts[-3] for picture in pictures} == {"train", "val"}
