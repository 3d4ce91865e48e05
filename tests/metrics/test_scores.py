"""The metrics as they are used: in batches, inside jit, merged, and with images that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.metrics import (
    FID,
    KID,
    SFID,
    InceptionFeatures,
    InceptionScore,
    PrecisionRecall,
    frechet_distance,
    statistics_of,
    update,
)
from googlenet_jax.metrics.scores import few_images

pytestmark = pytest.mark.filterwarnings("ignore:.*images for .* features")


def colours(images) -> jax.Array:
    """Six features of images that need no network."""
    images = jnp.asarray(images, jnp.float32) / 255
    return jnp.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)


def noise(count: int, seed: int = 0, dark: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256 - dark, (count, 8, 8, 3), np.uint8)
    tint = np.random.default_rng(seed + 1).integers(0, 4, (count, 1, 1, 3), np.uint8)
    return images // (1 + tint)


@pytest.fixture(scope="module")
def inside_jit():
    """A step of a training loop, compiled once: adds eight images that are floats."""
    return jax.jit(lambda metric, images: metric.update(images))


def test_fid_in_batches_is_the_distance_of_all_features(features: InceptionFeatures, images):
    fid = FID(features).update(images[:8]).update(images[8:], real=False)
    values = np.concatenate([features(images[:8]), features(images[8:])])
    expected = frechet_distance(statistics_of(values[:8]), statistics_of(values[8:]))
    assert expected > 0
    assert fid.compute() == pytest.approx(expected, rel=1e-6)
    assert fid.compute(real=fid.statistics(real=False)) < 1e-6 * expected


def test_several_metrics_take_one_pass_of_the_network(features, images, monkeypatch):
    passes = []
    whole = InceptionFeatures.layers
    monkeypatch.setattr(
        InceptionFeatures,
        "layers",
        lambda self, images, names: passes.append(names) or whole(self, images, names),
    )
    metrics = {
        "fid": FID(features),
        "sfid": SFID(features),
        "is": InceptionScore(features, splits=2),
    }
    metrics = update(metrics, images[:8])
    metrics = update(metrics, images[8:], real=False)
    assert passes == [["logits", "pool3", "spatial"]] * 2
    assert 0 < metrics["sfid"].compute() != metrics["fid"].compute() > 0
    assert 1 < metrics["is"].compute().mean < 20


def test_inside_jit_a_metric_is_part_of_the_state():
    @jax.jit
    def step(metric: FID, images: jax.Array) -> FID:
        return metric.update(images, real=False)

    real, generated = noise(40), noise(40, 5, dark=60)
    fid = FID(colours, width=6).update(real)
    for start in range(0, 40, 10):
        fid = step(fid, jnp.asarray(generated[start : start + 10]))
    outside = FID(colours, width=6).update(real).update(generated, real=False)
    assert fid.compute() == pytest.approx(outside.compute(), rel=1e-6)
    assert fid.reset().update(real, real=False).compute() < 1e-6 * fid.compute()
    assert step._cache_size() == 1


def test_merging_is_one_set_of_images():
    images, others = noise(60), noise(60, 3, dark=30)
    for make in (
        lambda: FID(colours, width=6),
        lambda: KID(colours, width=6, subset_size=20, capacity=60),
        lambda: PrecisionRecall(colours, width=6, capacity=60),
    ):
        parts = [
            make().update(images[half]).update(others[half], real=False)
            for half in (slice(0, 25), slice(25, 60))
        ]
        whole = make().update(images).update(others, real=False)
        np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole.compute(), rtol=1e-6)
        assert whole.merge_processes() is whole


def test_the_inception_score_is_its_definition():
    logits = np.random.default_rng(0).normal(size=(53, 7)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def score(part: np.ndarray) -> float:
        return float(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))

    stretches = [score(p[i * 53 // 4 : (i + 1) * 53 // 4]) for i in range(4)]
    known = InceptionScore(colours, width=7, splits=4, examples=53)
    turns = InceptionScore(colours, width=7, splits=4)
    for start in range(0, 53, 10):
        known = known.update_features(logits[start : start + 10])
        turns = turns.update_features(logits[start : start + 10])
    assert known.compute() == pytest.approx((np.mean(stretches), np.std(stretches)), rel=1e-6)
    by_turns = [score(p[i::4]) for i in range(4)]
    assert turns.compute() == pytest.approx((np.mean(by_turns), np.std(by_turns)), rel=1e-6)
    with pytest.raises(UserError, match="53 images, as was said, found 10"):
        InceptionScore(colours, width=7, examples=53).update_features(logits[:10]).compute()


def test_floats_are_rounded_as_a_file_would_round_them(features, images):
    floats = images[:8].astype(np.float32) / 127.5 - 1 + 1e-4
    fid = FID(features, value_range=(-1, 1)).update(floats)
    exact = FID(features).update(images[:8])
    np.testing.assert_array_equal(fid.statistics().mean, exact.statistics().mean)


def test_images_in_another_range_are_refused_inside_jit_too(features, images, inside_jit):
    for low in (-1, 0):
        floats = np.float32(low) + images[:8].astype(np.float32) / 255 * (1 - low)
        with pytest.raises(UserError, match="value_range"):
            FID(features).update(floats)
        with pytest.raises(UserError, match="value_range"):
            inside_jit(FID(features), jnp.asarray(floats)).statistics()
    with pytest.raises(UserError, match="outside of value_range -1 to 1"):
        FID(features, value_range=(-1, 1)).update(images[:8].astype(np.float32))


def test_images_with_nan_are_refused_inside_jit_too(features, images, inside_jit):
    floats = images[:8].astype(np.float32)
    floats[3, 5, 5, 1] = np.nan
    with pytest.raises(UserError, match="1 of 8 hold NaN or inf, the first is number 3"):
        FID(features).update(floats)
    with pytest.raises(UserError, match="NaN"):
        inside_jit(FID(features), jnp.asarray(floats)).statistics()


def test_images_of_another_form_are_refused(features):
    for wrong, match in (
        (np.zeros((2, 3, 40, 40), np.uint8), "transpose"),
        (np.zeros((40, 40, 3), np.uint8), "N, H, W, 3"),
        (np.zeros((2, 40, 40, 3), np.int32), "int32"),
        ("a folder", "str"),
    ):
        with pytest.raises(UserError, match=match):
            FID(features).update(wrong)


def test_a_network_in_training_mode_is_refused():
    model = gj.create_model("googlenet_bn", width=0.1, aux_heads=False)
    sample = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(lambda key: model.init(key, sample, train=False))(jax.random.key(0))

    def training(images):
        images = jnp.asarray(images, jnp.float32)
        return model.apply(
            variables,
            images / 255,
            train=False,
            use_running_average=False,
            mutable=["batch_stats"],
        )

    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="mutable"):
        FID(training, width=1000).update(pictures)
    with pytest.raises(UserError, match="training mode"):
        FID(lambda images: training(images)[0].logits, width=1000).update(pictures)


def test_other_networks_are_not_taken_for_the_fids(features):
    model = gj.create_model("inception_v3", width=0.1, aux_heads=False)
    with pytest.raises(UserError, match="flavour 'fid'"):
        gj.metrics.inception_features(model, features.variables)


def test_more_images_than_the_capacity_are_no_value():
    metric = PrecisionRecall(colours, width=6, capacity=20)
    metric = metric.update(noise(15)).update(noise(15, 2), real=False).update(noise(15, 4))
    with pytest.raises(UserError, match="number of images, 30, found 20"):
        metric.compute()


def test_few_images_are_said_with_what_it_means():
    values = np.random.default_rng(0).normal(size=(30, 40))
    one, many = statistics_of(values), statistics_of(np.tile(values, (2, 1)))
    assert "30 images for 40 features" in few_images(one, many)
    assert few_images(many, many) == ""
    with pytest.warns(UserWarning, match="biased"):
        FID(colours, width=6).update(noise(4)).update(noise(40), real=False).compute()
