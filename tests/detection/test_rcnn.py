"""Fine-tuning a region classifier, from data to detections, at its smallest."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.detection.box_regression import load_regression
from googlenet_jax.detection.exchange import FOUND, TRUTH
from googlenet_jax.detection.rcnn import RCNN, default_rcnn_config
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import variable_shapes
from googlenet_jax.models.registry import create_model
from googlenet_jax.runtime.sharding import create_mesh
from googlenet_jax.training.config import resolve
from googlenet_jax.training.loop import train
from googlenet_jax.weights.safetensors import save_weights
from tests.detection.conftest import shapes


def tiny_config(folder):
    config = default_rcnn_config()
    config.model.name = "tiny_trunk"
    config.data.update(name="shapes", dir=str(folder), train_split="train", threads=1)
    config.preprocessing.update(size=8, resize=8)
    config.proposals.names = ("selective_search",)
    config.regions.canvas = 40
    config.batch_size = 4
    config.eval_batch_size = 16
    config.duration = "6 steps"
    config.eval_every = config.checkpoint_every = "6 steps"
    config.log_every = "2 steps"
    return config


def test_a_batch_holds_an_object_and_three_backgrounds_of_its_image(shapes_dir):
    task = resolve(tiny_config(shapes_dir)).open(create_mesh())
    batch = next(task.batches(0))
    assert batch["boxes"].shape == (4, 4, 4) and batch["canvas"].shape == (4, 40, 40, 3)
    assert (batch["label"][:, 0] < 2).all() and (batch["label"][:, 1:] == 2).all()
    for canvas, boxes, label in zip(batch["canvas"], batch["boxes"], batch["label"], strict=True):
        top, left, bottom, right = np.clip(boxes[0].astype(int), 0, 40)
        assert abs(np.median(canvas[top:bottom, left:right]) - (250, 10)[label[0]]) < 5


def test_batch_k_is_the_same_wherever_a_run_begins(shapes_dir):
    task = resolve(tiny_config(shapes_dir)).open(create_mesh())
    third = next(itertools.islice(task.batches(0), 3, None))
    again = next(task.batches(3))
    for name, value in third.items():
        np.testing.assert_array_equal(value, again[name])


def test_every_object_window_comes_once_an_epoch(shapes_dir):
    task = resolve(tiny_config(shapes_dir)).open(create_mesh())
    batches = itertools.islice(task.batches(0), task.examples // 4)
    seen = [box.tobytes() for batch in batches for box in batch["boxes"][:, 0]]
    assert len(set(seen)) == len(seen) == task.examples // 4 * 4


@pytest.fixture(scope="module")
def run(shapes_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny_config(shapes_dir), folder)
    return folder


def test_a_run_is_trained_and_measured(run, capsys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = lines[-1]
    assert evaluation["split"] == "test" and 0 <= evaluation["map"] <= 1
    assert main(["detect", "--weights", str(run), "--split", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["table"][0]["voc2010"] == pytest.approx(evaluation["map"], abs=1e-6)
    assert set(result["classes"]) == {"square", "bar"}


def test_a_splits_detections_are_written_for_other_programs(run, tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    command = ["detect", "--weights", str(run), "--split", "test", "--output", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["coco"]
    data = coco.COCO(str(tmp_path / TRUTH))
    evaluation = COCOeval(data, data.loadRes(str(tmp_path / FOUND)), "bbox")
    for stage in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        stage()
    ours = [-1 if value is None else value for value in figures.values()]
    np.testing.assert_allclose(evaluation.stats, ours, atol=1e-6)
    assert {image["file_name"] for image in data.dataset["images"]} >= {"000001", "000002"}
    for name in ("square", "bar"):
        assert (tmp_path / f"comp4_det_test_{name}.txt").stat().st_size > 0


@pytest.mark.parametrize("name", ["googlenet_torchvision", "inception_v3"])
def test_the_trunk_is_any_network_with_its_preprocessing(tmp_path, shapes_dir, name):
    model = create_model(name, num_classes=7, width=0.03, aux_heads=False)
    size = max(model.min_size, 40)
    shapes_of = variable_shapes(model, size)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes_of)
    mean = (1.0, 2.0, 3.0)
    preprocessing = Preprocessing(size=size, resize=size + 8, mean=mean, channel_order="bgr")
    save_weights(
        tmp_path / "trunk.safetensors", model, variables, preprocessing=preprocessing.to_dict()
    )
    config = tiny_config(shapes_dir)
    config.init_from, config.model.name = str(tmp_path / "trunk.safetensors"), ""
    config.preprocessing.size = 0
    resolved = resolve(config)
    assert (resolved.config.model.name, resolved.config.model.options.width) == (name, 0.03)
    assert resolved.parts.preprocessing == preprocessing
    task = resolved.open(create_mesh())
    batch = task.prepare(next(task.batches(0)), jax.random.key(0))
    assert batch["image"].shape == (16, size, size, 3)
    assert task.model.num_classes == 3


def test_an_ensemble_of_one_network_twice_is_that_network(run, capsys):
    command = ["detect", "--weights", f"{run},{run}", "--split", "test", "--json"]
    assert main(command) == 0
    one, other, both = json.loads(capsys.readouterr().out)["table"]
    figures = ("voc2007", "voc2010", "ilsvrc", "coco")
    assert [one[name] for name in figures] == [other[name] for name in figures]
    assert [one[name] for name in figures] == [both[name] for name in figures]


def test_missing_proposals_say_how_to_make_them(shapes_dir):
    config = tiny_config(shapes_dir)
    config.proposals.names = ("selective_search_x2",)
    with pytest.raises(
        UserError, match=r"proposals shapes --split 'train' --methods selective_search_x2"
    ):
        RCNN.open(resolve(config), create_mesh())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("proposals.names", ("boxes",), "proposals: expected .* found 'boxes'"),
        ("proposals.names", (), r"proposals\.names: expected at least one"),
        ("regions.overlap", 1.5, r"regions\.overlap: expected a number from 0 to 1, found 1.5"),
        ("regions.background", 0, r"regions\.background: expected a whole number from 1 to"),
        ("regions.measure", "coco", r"regions\.measure: expected one of 'voc2007'"),
        ("checkpoint.best", "top1", r"checkpoint\.best: expected 'map' or 'loss'"),
        ("preprocessing.size", 4, r"preprocessing\.size: .* at least"),
    ],
)
def test_impossible_values_are_named(tmp_path, field, value, message):
    config = tiny_config(tmp_path)
    config.update_from_flattened_dict({field: value})
    if field == "preprocessing.size":
        config.preprocessing.resize = value
        config.model.name = "googlenet"
    with pytest.raises(UserError, match=message):
        resolve(config)


def test_jax_compiles_one_shape_for_images_of_any_number_of_boxes(shapes_dir, run):
    from googlenet_jax.detection.classifier import Scorer
    from googlenet_jax.detection.rcnn import settings
    from googlenet_jax.detection.runs import load_ensemble

    ensemble = load_ensemble([str(run)])
    scorer = Scorer(ensemble.classifiers, settings(ensemble.config), create_mesh())
    rng = np.random.default_rng(0)
    for count, size in ((3, (40, 40)), (16, (20, 40)), (35, (400, 90))):
        corner = rng.uniform(0, 20, (count, 2))
        boxes = np.concatenate([corner, corner + 9], axis=1)
        scored = scorer.dispatch(ensemble.variables, np.zeros((*size, 3), np.uint8), boxes)()
        assert scored.probabilities.shape == (1, count, 3)
        np.testing.assert_allclose(scored.probabilities.sum(axis=-1), 1, rtol=1e-5)
    assert scorer._score._cache_size() == 1
    assert jax.device_count() >= 1


def test_pictures_come_back_with_boxes_names_and_scores(run, tmp_path, capsys):
    for number, shown in enumerate(shapes(2, seed=5)):
        Image.fromarray(shown.image).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / name) for name in ("0.png", "1.png")]
    options = ["--score", "0", "--output", str(tmp_path / "out"), "--json"]
    assert main(["detect", "--weights", str(run), *options, *paths]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == paths
    for line in lines:
        assert line["detections"]
        scores = [each["score"] for each in line["detections"]]
        assert scores == sorted(scores, reverse=True)
        for each in line["detections"]:
            top, left, bottom, right = each["box"]
            assert 0 <= top < bottom <= 40 and 0 <= left < right <= 40
            assert each["class"] in ("square", "bar")
    drawn = np.asarray(Image.open(tmp_path / "out" / "0.detections.png"))
    assert drawn.shape == (40, 40, 3)
    assert not np.array_equal(drawn, np.asarray(Image.open(paths[0])))


def test_a_picture_that_can_not_be_read_is_named_and_the_others_go_on(run, tmp_path, capsys):
    Image.fromarray(shapes(1, seed=5)[0].image).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    paths = [str(tmp_path / name) for name in ("bad.jpg", "good.png")]
    assert main(["detect", "--weights", str(run), "--json", *paths]) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert "error" in lines[0] and "detections" in lines[1]
    assert "bad.jpg: can't read the picture" in printed.err


def test_box_regression_is_fitted_once_and_moves_boxes(run, capsys):
    command = ["detect", "--weights", str(run), "--split", "test"]
    assert main([*command, "--box-regression"]) == 0
    printed = capsys.readouterr().out
    assert "mAP, %" in printed and "square" in printed
    regression = load_regression(run)
    assert regression is not None and regression.weights.shape == (2, 8, 4)
    assert np.abs(regression.bias).max() > 0
    assert main([*command, "--box-regression"]) == 0
    assert capsys.readouterr().out == printed


def test_either_pictures_or_a_split(run, capsys):
    assert main(["detect", "--weights", str(run)]) == 1
    assert "either pictures or --split" in capsys.readouterr().err
