"""R-CNN's scheme with one of our networks as the region classifier, as a task to train.

Fine-tuning as in arXiv 1311.2524: a batch holds 32 windows with an object, drawn uniformly over all
of them, and 96 of background, here three from the image of each. The classifier's softmax is the
score, as the ILSVRC14 entry's is read (arXiv 1409.4842, section 8).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.augment import flip
from googlenet_jax.data.preprocessing import Preprocessing, standardize
from googlenet_jax.detection.classifier import Classifier, Scorer, Settings
from googlenet_jax.detection.evaluate import (
    MEASURES,
    Split,
    mean_average_precision,
    open_split,
    score_split,
)
from googlenet_jax.detection.proposals import check_method
from googlenet_jax.detection.regions import to_canvas, warp, with_context
from googlenet_jax.detection.sources import DetectionSource, load_detection_source
from googlenet_jax.detection.tasks import build_parts, detection_config, numbered_batches
from googlenet_jax.detection.windows import (
    BACKGROUND_NAME,
    Windows,
    draw,
    label_windows,
    object_windows,
)
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.metrics import top1
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_options
from googlenet_jax.runtime.process import log
from googlenet_jax.training.config import AT_LEAST_ONE, COUNT, Field, one_of, share_up_to
from googlenet_jax.training.losses import Loss, create_loss
from googlenet_jax.training.task import Batch, Evaluate, Resolved, Task, TaskKind, register_task

NAME = "rcnn"


# fmt: off
FIELDS = (
    Field("proposals.names", ("selective_search_x2",),
          "As `googlenet-jax proposals` has made them.", (len, "at least one")),
    Field("proposals.most", 2000, "So many of each set's best boxes in an image; 0 is all.", COUNT),
    Field("regions.canvas", 512, "Side in pixels; larger images are scaled down to it.",
          AT_LEAST_ONE),
    Field("regions.background", 3, "Windows of background for one of an object.", AT_LEAST_ONE),
    Field("regions.overlap", 0.3, "IoU above which the lower-scored of two detections is dropped.",
          share_up_to(1)),
    Field("regions.keep", 100, "Detections of a class and image.", AT_LEAST_ONE),
    Field("regions.measure", "voc2010", "The mAP that evaluations report.", one_of(tuple(MEASURES))),
    Field("augment.flip", True, "Mirror half of the windows."),
)
# fmt: on


def default_rcnn_config() -> ConfigDict:
    """Returns a config for fine-tuning a region classifier, with every field there is.

    A batch is `batch_size` object windows and `regions.background` times as many of background; an
    epoch is every object window once.
    """
    config = detection_config(NAME, "map", FIELDS)
    config.schedule.learning_rate = 0.001  # a tenth of pretraining's
    return config


class Parts(NamedTuple):
    """What a config describes, built; the model is for as many classes as ImageNet has, until the
    data set's number is known.
    """

    model: Network
    preprocessing: Preprocessing
    loss: Loss


def build(config: ConfigDict) -> Parts:
    """Raises UserError for values that can't be."""
    parts = build_parts(config, 1000, "map", FIELDS)
    for name in config.proposals.names:
        check_method(name)
    return Parts(*parts, create_loss(**config.loss.to_dict()))


def open_task(resolved: Resolved, mesh: Mesh) -> Task:
    """Opens the data and its proposals.

    Raises UserError where there is no such data set, split, proposals or weights.
    """
    config, parts = resolved.config, resolved.parts
    data, preprocessing = config.data, parts.preprocessing
    source, *eval_sources = (
        load_detection_source(data.name, split, data.dir or None)
        for split in (data.train_split, *data.eval_splits)
    )
    dtype = jnp.dtype(config.dtype)
    network = parts.model.clone(num_classes=source.num_classes + 1)
    examples, batches = _batches(config, source)
    return Task(
        model=network,
        inputs=lambda batch: (batch["image"],),
        example={"image": jnp.zeros((1, preprocessing.size, preprocessing.size, 3), dtype)},
        examples=examples,
        batches=batches,
        prepare=functools.partial(_prepare, preprocessing, dtype, config.augment.flip),
        loss=parts.loss,
        metrics={"top1": top1},
        evaluations=_evaluations(config, network, preprocessing, eval_sources, mesh),
        description={
            "model_name": config.model.name,
            "model_options": model_options(network),
            "class_names": (*source.class_names, BACKGROUND_NAME),
            "preprocessing": preprocessing.to_dict(),
        },
    )


def _batches(config: ConfigDict, source: DetectionSource) -> tuple[int, Callable[..., Any]]:
    """How many object windows the split has, and what yields batches of them from a step on."""
    windows = training_windows(source, config.proposals.names, config.proposals.most)
    objects, skipped = object_windows(windows)
    if skipped:
        log(f"{source.name} {source.split}: {skipped} images without background passed over")
    if not len(objects):
        raise UserError(f"{source.name} {source.split}: no image has an object and a background")
    options = dict(canvas=config.regions.canvas, background=config.regions.background)
    read = functools.partial(_read, source, windows, objects, **options)
    return len(objects), functools.partial(
        numbered_batches,
        read,
        examples=len(objects),
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.data.threads,
    )


def training_windows(source: DetectionSource, names: Sequence[str], most: int) -> list[Windows]:
    """Labels a split's proposals and its objects' own boxes, an image each."""
    split = open_split(source, names, most)
    return [label_windows(*pair) for pair in zip(split.boxes, split.truth, strict=True)]


def settings(config: Any) -> Settings:
    """What a config, a ConfigDict or a dictionary, says of how regions are scored."""
    regions = config["regions"]
    return Settings(
        canvas=regions["canvas"],
        batch=config["eval_batch_size"],
        overlap=regions["overlap"],
        keep=regions["keep"],
    )


def _read(
    source: DetectionSource,
    windows: Sequence[Windows],
    objects: np.ndarray,
    indices: np.ndarray,
    rngs: Sequence[np.random.Generator],
    *,
    canvas: int,
    background: int,
) -> dict[str, np.ndarray]:
    """The batch of these object windows, each with its image; boxes in the canvas's pixels."""
    images, places = objects[indices].T
    unique, back = np.unique(images, return_inverse=True)
    decoded = [to_canvas(each["image"], canvas) for each in source.read(unique.tolist())]
    canvases = [decoded[i] for i in back]
    draws = [
        draw(windows[image], place, background, source.num_classes, rng)
        for image, place, rng in zip(images, places, rngs, strict=True)
    ]
    scaled = [each.boxes * on.scale for each, on in zip(draws, canvases, strict=True)]
    return {
        "canvas": np.stack([each.pixels for each in canvases]),
        "size": np.stack([each.size for each in canvases]),
        "boxes": np.stack(scaled).astype(np.float32),
        "label": np.stack([each.labels for each in draws]),
    }


def _prepare(
    preprocessing: Preprocessing, dtype: Any, mirror: bool, batch: Batch, key: jax.Array
) -> Batch:
    """Windows cut out of their canvases: image [B · (1 + R), S, S, 3] and label [B · (1 + R)]."""
    images = standardize(batch["canvas"], preprocessing, dtype)
    windows = with_context(batch["boxes"])
    crops = warp(images, batch["size"], windows, preprocessing.size)
    flat = {"image": crops.reshape(-1, *crops.shape[2:]), "label": batch["label"].reshape(-1)}
    return flip(flat, key) if mirror else flat


def _evaluations(
    config: ConfigDict,
    network: Any,
    preprocessing: Preprocessing,
    sources: Sequence[DetectionSource],
    mesh: Mesh,
) -> dict[str, Evaluate]:
    scorer = Scorer([Classifier(network, preprocessing)], settings(config), mesh)
    measure = config.regions.measure

    def evaluation(split: Split) -> Evaluate:
        def evaluate(variables: Any, should_stop: Callable[[], bool]) -> dict[str, float]:
            scores = score_split(scorer, [variables], split, should_stop=should_stop)
            value = mean_average_precision(split, scores.detections[0,], measure)
            return {"loss": scores.losses[0], "map": value, "examples": len(split.boxes)}

        return evaluate

    names, most = config.proposals.names, config.proposals.most
    return {source.split: evaluation(open_split(source, names, most)) for source in sources}


RCNN = TaskKind(default_rcnn_config, build, open_task)
register_task(NAME, RCNN)
