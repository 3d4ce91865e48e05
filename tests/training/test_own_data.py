"""Training on data of a researcher's own: arrays, items, other libraries' formats; parts and
balance.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import chex
import grain
import jax
import numpy as np
import optax
import pytest
from PIL import Image

import googlenet_jax as gj
from googlenet_jax.data.examples import ItemSource, as_sources, fold, per_class
from googlenet_jax.data.pipeline import RandomCrop, eval_batches, train_batches
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.resampling import INTERPOLATIONS, scale
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError
from googlenet_jax.training.losses import binary_cross_entropy, weighted_cross_entropy
from googlenet_jax.training.writers import read_metrics
from tests.training.tiny_run import tiny_config

CROP = RandomCrop((0.5, 1.0), (0.8, 1.25))


def arrays(count: int = 24, channels: int = 3, dtype: Any = np.uint8) -> tuple[Any, Any]:
    """Bright images of class 1, dark ones of class 0."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.integers(0, 100, (count, 10, 9, channels)) + 150 * labels[:, None, None, None]
    scaled = images / 255 if np.issubdtype(dtype, np.floating) else images
    return scaled.astype(dtype), labels


def two_steps(folder: Path, **model: Any) -> Any:
    config = tiny_config(folder)
    config.update(batch_size=8, eval_batch_size=8, metrics=("top1",))
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "2 steps"
    config.model.options.update(model)
    return config


@pytest.mark.parametrize(
    ("channels", "dtype", "mean"),
    [
        pytest.param(3, np.uint8, (128.0,), marks=pytest.mark.proof),
        (5, np.uint16, (128.0,) * 5),
        pytest.param(1, np.float64, (0.5,), marks=pytest.mark.proof),
    ],
)
def test_arrays_are_trained_on(tmp_path: Path, channels: int, dtype: Any, mean: Any) -> None:
    images, labels = arrays(24, channels, dtype)
    config = two_steps(tmp_path / "d", **({"in_channels": 1} if channels == 1 else {}))
    config.preprocessing.update(mean=mean, std=mean)
    held = images[:5], labels[:5]
    gj.train(config, tmp_path / "run", train=(images, labels), eval={"held": held})
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    found = [line for line in lines if line["split"] == "held"]
    assert {line["examples"] for line in found} == {5}
    trained = gj.load(f"{tmp_path / 'run'}@raw")
    assert trained.class_names == ("0", "1") and trained.model.in_channels == channels
    logits = trained.logits(held[0].astype(np.float32 if dtype == np.float64 else dtype))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, held[1]).mean()
    raw = next(line["loss"] for line in found if line["weights"] == "raw")
    assert float(loss) == pytest.approx(raw, rel=1e-4)
    traced = jax.jit(lambda: gj.load(f"{tmp_path / 'run'}@raw").variables["params"])()
    chex.assert_trees_all_equal(traced, trained.variables["params"])
    with pytest.raises(UserError, match="other data under this name: fingerprint"):
        gj.train(config, tmp_path / "run", train=(images + 1, labels), eval={"held": held})
    with pytest.raises(UserError, match="hand them over again"):
        gj.train(json.loads((tmp_path / "run" / "config.json").read_text()), tmp_path / "run")


@pytest.mark.proof
def test_several_labels_an_image(tmp_path: Path) -> None:
    images, labels = arrays()
    several = np.stack([labels, 1 - labels, np.ones_like(labels)], axis=1)
    config = two_steps(tmp_path / "d")
    with pytest.raises(UserError, match=r"loss\.name.*binary_cross_entropy"):
        gj.train(config, tmp_path / "run", train=(images, several))
    config.loss.name, config.metrics = "binary_cross_entropy", ()
    config.checkpoint.update(best="loss", best_mode="min")
    gj.train(config, tmp_path / "run", train=(images, several))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logits = gj.load(f"{tmp_path / 'run'}@raw").logits(images)
    expected = float(optax.sigmoid_binary_cross_entropy(logits, several).mean())
    found = [line["loss"] for line in lines if line.get("weights") == "raw"]
    assert found == [pytest.approx(expected, rel=1e-4)]


def test_class_weights_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 3)).astype(np.float32), rng.integers(0, 3, 9)
    weights = (0.2, 1.0, 3.0)
    output = gj.Output(logits, {"aux1": logits * 0.5})
    ours, parts = weighted_cross_entropy(output, {"label": labels}, class_weights=weights)
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weights))
    expected = [theirs(torch.tensor(logits * f), torch.tensor(labels)) for f in (1, 0.5)]
    assert float(parts["loss_main"]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert float(ours) == pytest.approx(float(expected[0] + 0.3 * expected[1]), rel=1e-5)
    targets = rng.integers(0, 2, (9, 3)).astype(np.float32)
    ours, _ = binary_cross_entropy(gj.Output(logits, {}), {"label": targets}, class_weights=weights)
    theirs = torch.nn.BCEWithLogitsLoss(torch.tensor(weights))
    expected = theirs(torch.tensor(logits), torch.tensor(targets))
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


def batches(source: Any, count: int, **options: Any) -> list[dict[str, np.ndarray]]:
    made = train_batches(source, batch_size=10, size=6, augment=CROP, seed=3, **options)
    return [next(made) for _ in range(count)]


def test_balanced_sampling_is_a_function_of_seed_and_step() -> None:
    images, _ = arrays(40)
    labels = np.array([0] * 37 + [1] * 3)
    source, _ = as_sources((images, labels), None)
    whole = batches(source, 40, sampling="balanced")
    share = np.mean([batch["label"].mean() for batch in whole])
    assert 0.4 < share < 0.6
    (again,) = batches(source, 1, sampling="balanced", start_step=7, threads=1)
    assert all((again[name] == whole[7][name]).all() for name in again)
    halves = [
        batches(source, 8, sampling="balanced", process_index=part, process_count=2)[7]
        for part in (0, 1)
    ]
    assert (np.concatenate([each["image"] for each in halves]) == whole[7]["image"]).all()


def test_workers_read_other_dtypes_too() -> None:
    images, labels = arrays(20, 5, np.float32)
    source, _ = as_sources((images, labels), None)
    alone, worked = (batches(source, 2, channels=5, workers=count)[1] for count in (0, 1))
    assert worked["image"].dtype == np.float32 and (worked["image"] == alone["image"]).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_are_scaled_each_alike(interpolation: str, dtype: Any) -> None:
    image = arrays(1, 6, dtype)[0][0]
    for side in (5, 14):
        whole = scale(image, side, side, interpolation)
        assert whole.shape == (side, side, 6) and whole.dtype == dtype
        alone = [
            scale(np.ascontiguousarray(image[..., [c]]), side, side, interpolation)
            for c in range(6)
        ]
        np.testing.assert_allclose(
            whole, np.concatenate(alone, 2), rtol=1e-5, atol=1e-6 if dtype == np.float32 else 1
        )


def test_subsets_and_folds() -> None:
    images, _ = arrays(30)
    labels = np.repeat([0, 1, 2], [15, 10, 5])
    source, _ = as_sources((images, labels), None)
    few = per_class(source, 4, seed=1)
    assert np.bincount(few.labels()).tolist() == [4, 4, 4]
    assert few.identity() == per_class(source, 4, seed=1).identity()
    assert few.identity() != per_class(source, 4, seed=2).identity()
    inside = [fold(source, f"{part}/5", seed=0)[1] for part in range(1, 6)]
    assert [np.bincount(each.labels()).tolist() for each in inside] == [[3, 2, 1]] * 5
    outside, held = fold(source, "2/5", seed=0)
    seen = [
        image.tobytes()
        for part in (outside, held)
        for image in (part[i]["image"] for i in range(len(part)))
    ]
    assert sorted(seen) == sorted(image.tobytes() for image in images)
    with pytest.raises(UserError, match=r"data\.fold: expected a form such as '2/5', found '6/5'"):
        fold(source, "6/5", seed=0)


@pytest.mark.proof
def test_a_fold_is_held_out_and_evaluated_first(tmp_path: Path) -> None:
    config = two_steps(tmp_path / "d")
    config.data.update(fold="1/4", per_class=6, sampling="balanced")
    images, labels = arrays(40)
    gj.train(config, tmp_path / "run", train=(images, labels), eval={"all": (images, labels)})
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    raw = {line["split"]: line["examples"] for line in lines if line.get("weights") == "raw"}
    assert list(raw.items()) == [("fold", 10), ("all", 40)]
    assert gj.load(tmp_path / "run").data["examples"] == 12


def test_evaluations_stand_beside_the_training_examples() -> None:
    images, labels = arrays(8)
    train, (few, other) = as_sources(
        (images, labels), {"train": (images[:3], labels[:3]), "test": (images[:4], labels[:4])}
    )
    assert [len(each) for each in (train, few, other)] == [8, 3, 4]
    assert [each.split for each in (few, other)] == ["train", "test"]
    with pytest.raises(UserError, match="test: expected the classes, kind of labels, channels"):
        as_sources((images, labels), {"test": (images[..., :2], labels)})


class Pairs:
    """Pillow's images of two modes, and names of the classes."""

    class_names = ("dark", "bright")
    fingerprint = "pairs, version 1"

    def __init__(self) -> None:
        self.images, self.labels = arrays(8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = Image.fromarray(self.images[index])
        return image.convert("L") if index % 2 else image, int(self.labels[index])


def centres(source: Any) -> np.ndarray:
    """All images of a source, as evaluation sees them."""
    prepared = Preprocessing(size=6, resize=6)
    return np.concatenate(
        [each["image"] for each in eval_batches(source, batch_size=8, preprocessing=prepared)]
    )


def test_items_of_any_library() -> None:
    source, _ = as_sources(Pairs(), None)
    assert source.class_names == ("dark", "bright") and centres(source).shape == (8, 6, 6, 3)
    images, labels = arrays(8)
    pairs = grain.MapDataset.range(8).map(lambda i: {"image": images[i], "label": int(labels[i])})
    grains, _ = as_sources(pairs, None)
    assert (centres(grains) == centres(as_sources((images, labels), None)[0])).all()
    with pytest.raises(UserError, match=r"given train, example 0: expected \{"):
        as_sources([3], None, class_names=("a",))
    with pytest.raises(UserError, match="train: expected arrays"):
        as_sources(3, None)
    with pytest.raises(UserError, match="a label for each of 8 images, found 7"):
        as_sources((images, labels[:7]), None)
    wrong = ItemSource([(images[0], 0), (images[1], 5)], "given", "train", ("a", "b"))
    with pytest.raises(UserError, match="example 1: expected a label from 0 to 1, found 5"):
        wrong.read([1])


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def test_tar_shards(tmp_path: Path) -> None:
    images, labels = arrays(8)
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as archive:
            for number in range(4 * shard, 4 * shard + 4):
                label = str(labels[number]) if shard else json.dumps({"label": int(labels[number])})
                for ending, data in (
                    ("png", png(images[number])),
                    (("json", "cls")[shard], label.encode()),
                ):
                    info = tarfile.TarInfo(f"a/{number:03}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    (tmp_path / "classes.txt").write_text("dark\nbright\n")
    source = load_source(f"tar:{tmp_path}/{{split}}-*.tar", "train")
    assert source.class_names == ("dark", "bright") and source.labels().tolist() == labels.tolist()
    assert (centres(source) == centres(as_sources((images, labels), None)[0])).all()
    half = load_source(f"tar:{tmp_path}/{{split}}-*.tar", "train[50%:]")
    assert len(half) == 4 and (centres(half)[:4] == centres(source)[4:]).all()
    with pytest.raises(UserError, match="expected a slice such as"):
        load_source(f"tar:{tmp_path}/{{split}}-*.tar", "train[50%]")
    with pytest.raises(UserError, match="no such file"):
        load_source(f"tar:{tmp_path}/none-*.tar", "train")
    (tmp_path / "bad-0.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected an uncompressed tar file"):
        load_source(f"tar:{tmp_path}/bad-*.tar", "train")


@pytest.mark.proof
def test_hugging_faces_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from datasets.utils import disable_progress_bars

    disable_progress_bars()
    images, labels = arrays(8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])}
    )
    columns = {"image": [Image.fromarray(each) for each in images], "label": labels.tolist()}
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features)})
    made.save_to_disk(str(tmp_path / "set"))
    source = load_source(f"huggingface:{tmp_path / 'set'}", "train")
    assert source.class_names == ("dark", "bright")
    assert (centres(source) == centres(as_sources((images, labels), None)[0])).all()
