"""The configs of the Inception family: each change of the papers, and `:smoke` run with a resume in
between.
"""

import json
from pathlib import Path

import pytest

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.training.config import resolve
from tests.test_configs import get_config

CONFIGS = Path(__file__).parent.parent / "configs"
FAMILY = ("imagenet_bn_inception", "imagenet_inception_v2", "imagenet_inception_v3")


def make_config(name, arg=""):
    return get_config(CONFIGS / f"{name}.py", arg)


@pytest.mark.parametrize("arg", ["", "digits", "smoke"])
@pytest.mark.parametrize("name", FAMILY)
def test_config_is_valid(name, arg):
    resolve(make_config(name, arg))


@pytest.mark.parametrize("name", FAMILY[1:])
def test_the_paper_of_v3s_settings(name):
    config = make_config(name)
    assert (
        config.optimizer.name,
        config.optimizer.options.decay,
        config.optimizer.options.eps,
    ) == ("rmsprop", 0.9, 1.0)
    assert (config.optimizer.clip_norm, config.loss.label_smoothing) == (2.0, 0.1)
    assert (config.schedule.learning_rate, config.schedule.factor, config.schedule.every) == (
        0.045,
        0.94,
        "2 epochs",
    )


@pytest.mark.parametrize("field", ["preprocessing.size", "augment.size"])
def test_training_v3s_auxiliary_head_below_299_is_refused_by_name(field):
    config = make_config("imagenet_inception_v3")
    config.update_from_flattened_dict({field: 224})
    with pytest.raises(UserError, match=f"{field}: inception_v3: .*at least 299.*aux_heads=False"):
        resolve(config)
    config.model.options.aux_heads = False
    resolve(config)


def test_x5_and_x30_make_the_papers_list_of_changes():
    baseline, x5, x30 = (
        make_config("imagenet_bn_inception", arg) for arg in ("baseline", "x5", "x30")
    )
    assert [config.schedule.learning_rate for config in (baseline, x5, x30)] == pytest.approx(
        [0.0015, 0.0075, 0.045]
    )
    for accelerated in (x5, x30):
        assert (accelerated.model.options.dropout, accelerated.model.options.lrn) == (0.0, False)
        assert accelerated.optimizer.weight_decay == pytest.approx(
            baseline.optimizer.weight_decay / 5
        )
        assert float(baseline.schedule.every.split()[0]) / float(
            accelerated.schedule.every.split()[0]
        ) == pytest.approx(6, rel=1e-3)
    assert (baseline.model.options.dropout, baseline.model.options.lrn) == (0.4, True)
    assert make_config("imagenet_bn_inception") == baseline


@pytest.mark.proof
def test_smoke_resumes_in_between(tmp_path):
    """Of the config that compiles fastest; test_configs.py takes a step of each."""
    for duration in ("2 steps", "4 steps"):
        config = make_config("imagenet_bn_inception", "smoke")
        config.update(duration=duration, eval_every="4 steps", log_every="1 steps")
        gj.train(config, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    assert {line["step"] for line in lines if line["split"] != "train"} >= {4}
    assert gj.load(str(tmp_path)) is not None
