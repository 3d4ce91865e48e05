"""MultiBox: a network that proposes boxes itself (arXiv 1312.2249), on any of our trunks.

The last map of the trunk gives K boxes and a confidence each: residuals to K priors, the k-means
centres of the training boxes, in shares of the image.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing, standardize
from googlenet_jax.detection.boxes import areas
from googlenet_jax.detection.matching import ALPHA, kmeans_priors, matching_loss
from googlenet_jax.detection.measures import Objects, recall
from googlenet_jax.detection.proposals import MULTIBOX as NAME
from googlenet_jax.detection.proposals import Proposals
from googlenet_jax.detection.regions import to_canvas, warp
from googlenet_jax.detection.sources import DetectionSource, load_detection_source
from googlenet_jax.detection.tasks import build_parts, detection_config, numbered_batches
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import CutShort
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_options
from googlenet_jax.runtime.sharding import data_sharding, replicate, replicated
from googlenet_jax.training.config import AT_LEAST_ONE, POSITIVE, Field
from googlenet_jax.training.task import Batch, Evaluate, Resolved, Task, TaskKind, register_task
from googlenet_jax.weights.load import load

REDUCED = 64  # channels to which the last map is reduced before it is read whole
VISIBLE = 0.5  # an object with less of it inside a training crop is none there


@flax.struct.dataclass
class MultiBoxOutput:
    """boxes float [N, K, 4], (top, left, bottom, right) as shares of the image; logits float [N, K]
    of the confidences."""

    boxes: jax.Array
    logits: jax.Array


class Head(nn.Module):
    """From the last map to K boxes and confidences: 1×1 convolution, ReLU, then the whole map."""

    boxes: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, C] → residuals [N, K, 4] and logits [N, K], float32 or wider."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        make = functools.partial(nn.Dense, param_dtype=self.param_dtype)
        x = nn.Conv(REDUCED, (1, 1), dtype=self.dtype, param_dtype=self.param_dtype, name="reduce")(
            features
        )
        x = nn.relu(x).reshape(x.shape[0], -1)
        # Small at first, so that the predictions begin at their priors.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        residuals = make(4 * self.boxes, dtype=wide, kernel_init=small, name="locations")(x)
        rare = nn.initializers.constant(-4.0)  # most of the boxes hold nothing
        logits = make(
            self.boxes, dtype=wide, kernel_init=small, bias_init=rare, name="confidences"
        )(x)
        return residuals.reshape(x.shape[0], self.boxes, 4), logits


@dataclasses.dataclass(frozen=True)
class MultiBox:
    """A trunk and a head, called as a linen module is.

    Attributes:
      trunk: a network; its classifier is there but not used.
      count: K, the number of boxes.

    `variables` hold the trunk's, the head's under params/multibox and the priors, [K, 4], which
    don't learn, under batch_stats/multibox.
    """

    trunk: Any
    count: int
    priors: np.ndarray | None = dataclasses.field(default=None, hash=False, compare=False)

    @property
    def _head(self) -> Head:
        return Head(self.count, self.trunk.dtype, self.trunk.param_dtype)

    def init(self, rngs: dict[str, jax.Array], images: jax.Array, train: bool) -> dict[str, Any]:
        """The first variables, for images [N, S, S, 3]."""
        variables = self.trunk.init(rngs, images, train=train)
        shapes = jax.eval_shape(functools.partial(self._features, train=False), variables, images)
        features = jnp.zeros(shapes[0].shape, shapes[0].dtype)
        head = self._head.init(jax.random.fold_in(rngs["params"], 1), features)["params"]
        priors = jnp.zeros((self.count, 4)) if self.priors is None else jnp.asarray(self.priors)
        return {
            "params": {**variables["params"], NAME: head},
            "batch_stats": {**variables.get("batch_stats", {}), NAME: {"priors": priors}},
        }

    def apply(
        self,
        variables: dict[str, Any],
        images: jax.Array,
        train: bool,
        rngs: dict[str, jax.Array] | None = None,
        mutable: Sequence[str] = (),
    ) -> Any:
        """MultiBoxOutput for images [N, S, S, 3]; where mutable, with the updated batch_stats."""
        trunk = {
            name: {key: value for key, value in tree.items() if key != NAME}
            for name, tree in variables.items()
        }
        features, statistics = self._features(trunk, images, train=train, rngs=rngs)
        head: Any = self._head.apply({"params": variables["params"][NAME]}, features)
        residuals, logits = head
        priors = variables["batch_stats"][NAME]
        output = MultiBoxOutput(priors["priors"] + residuals, logits)
        return (output, {"batch_stats": {**statistics, NAME: priors}}) if mutable else output

    def _features(
        self,
        variables: dict[str, Any],
        images: jax.Array,
        train: bool,
        rngs: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The trunk's last map [N, H, W, C], and its new batch statistics."""
        collections = ["intermediates", *(["batch_stats"] if train else [])]
        _, updated = self.trunk.apply(
            variables, images, train=train, aux=False, rngs=rngs, mutable=collections
        )
        named = flatten_dict(updated["intermediates"])  # in the network's order
        maps = [value for value in named.values() if value.ndim == 4]
        return maps[-1], updated.get("batch_stats", {})


# fmt: off
FIELDS = (
    Field("multibox.boxes", 200, "K.", AT_LEAST_ONE),
    Field("multibox.alpha", ALPHA, "The weight of the locations in the loss.", POSITIVE),
    Field("multibox.canvas", 512, "Side in pixels; larger images are scaled down to it.",
          AT_LEAST_ONE),
    Field("augment.flip", True, "Mirror half of the images."),
    Field("augment.area", (0.5, 1.0), "The share of the image's sides that a random crop takes.",
          (lambda area: area[1] <= 1, "at most 1")),
)
# fmt: on


def default_multibox_config() -> ConfigDict:
    """Returns a config for training MultiBox with every field; an epoch is every image."""
    config = detection_config(NAME, "recall", FIELDS)
    del config.loss
    return config


def build(config: ConfigDict) -> tuple[Network, Preprocessing]:
    """Raises UserError for values that can't be."""
    return build_parts(config, 1, "recall", FIELDS)


def open_task(resolved: Resolved, mesh: Mesh) -> Task:
    """Opens the data and computes the priors.

    Raises UserError where there is no such data set, split or weights, or too few boxes.
    """
    config, (trunk, preprocessing) = resolved.config, resolved.parts
    data, multibox = config.data, config.multibox
    source, *eval_sources = (
        load_detection_source(data.name, split, data.dir or None)
        for split in (data.train_split, *data.eval_splits)
    )
    truth = _truth(source)
    priors = kmeans_priors(np.concatenate([each for each in truth]), multibox.boxes, config.seed)
    most = max(len(each) for each in truth)
    if most > multibox.boxes:
        raise UserError(
            f"multibox.boxes: an image of {source.split} has {most} objects; raise it to that"
        )
    dtype = jnp.dtype(config.dtype)
    network = MultiBox(trunk, multibox.boxes, priors)
    prepare = functools.partial(
        _prepare, preprocessing, dtype, config.augment.flip, tuple(config.augment.area)
    )
    return Task(
        model=network,
        inputs=lambda batch: (batch["image"],),
        example={"image": jnp.zeros((1, preprocessing.size, preprocessing.size, 3), dtype)},
        examples=len(source),
        batches=functools.partial(
            numbered_batches,
            functools.partial(_read, source, multibox.canvas, most),
            examples=len(source),
            batch_size=config.batch_size,
            seed=config.seed,
            threads=data.threads,
        ),
        prepare=prepare,
        loss=functools.partial(_loss, alpha=multibox.alpha),
        metrics={},
        evaluations=_evaluations(config, network, preprocessing, eval_sources, mesh),
        description={
            "model_name": config.model.name,
            "model_options": model_options(trunk),
            "class_names": ("object",),
            "preprocessing": preprocessing.to_dict(),
        },
    )


def _truth(source: DetectionSource) -> list[np.ndarray]:
    """The objects that count, [G, 4] an image as shares of it."""
    return [
        each.objects.boxes[~each.objects.ignored] / np.array([*each.size, *each.size], np.float32)
        for each in source.annotations()
    ]


def _read(
    source: DetectionSource,
    canvas: int,
    most: int,
    indices: np.ndarray,
    rngs: Sequence[np.random.Generator],
) -> dict[str, np.ndarray]:
    """Images on canvases with their objects, padded to `most`, in the canvas's pixels."""
    del rngs  # crops are drawn on the device
    count = len(indices)
    batch: dict[str, np.ndarray] = {
        "canvas": np.zeros((count, canvas, canvas, 3), np.uint8),
        "size": np.zeros((count, 2), np.float32),
        "boxes": np.zeros((count, most, 4), np.float32),
        "valid": np.zeros((count, most), bool),
    }
    for row, example in enumerate(source.read(indices.tolist())):
        on = to_canvas(example["image"], canvas)
        objects: Objects = example["objects"]
        boxes = objects.boxes[~objects.ignored] * on.scale
        batch["canvas"][row], batch["size"][row] = on.pixels, on.size
        batch["boxes"][row, : len(boxes)], batch["valid"][row, : len(boxes)] = boxes, True
    return batch


def _prepare(
    preprocessing: Preprocessing,
    dtype: Any,
    mirror: bool,
    area: tuple[float, float],
    batch: Batch,
    key: jax.Array,
) -> Batch:
    """Random crops, with the objects in them as shares of the crop."""
    side_key, place_key, flip_key = jax.random.split(key, 3)
    count, size = batch["size"].shape[0], batch["size"]
    sides = size * jax.random.uniform(side_key, (count, 1), minval=area[0], maxval=area[1])
    start = jax.random.uniform(place_key, (count, 2)) * (size - sides)
    windows = jnp.concatenate([start, start + sides], axis=1)
    images = warp(
        standardize(batch["canvas"], preprocessing, dtype),
        size,
        windows[:, None],
        preprocessing.size,
    )[:, 0]
    origin, scale = jnp.tile(start, 2)[:, None], jnp.tile(sides, 2)[:, None]
    boxes = (batch["boxes"] - origin) / scale
    inside = jnp.clip(boxes, 0, 1)
    seen = areas(inside) >= VISIBLE * areas(boxes)
    if mirror:
        flipped = jax.random.bernoulli(flip_key, 0.5, (count,))
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
        swapped = jnp.stack(
            [inside[..., 0], 1 - inside[..., 3], inside[..., 2], 1 - inside[..., 1]], axis=-1
        )
        inside = jnp.where(flipped[:, None, None], swapped, inside)
    return {"image": images, "boxes": inside, "valid": batch["valid"] & seen}


def _loss(
    output: MultiBoxOutput, batch: Batch, *, alpha: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over the images of the matching loss, and its two parts."""
    each = jax.vmap(functools.partial(matching_loss, alpha=alpha))
    locations, confidences = each(output.boxes, output.logits, batch["boxes"], batch["valid"])
    parts = {"loss_locations": locations.mean(), "loss_confidences": confidences.mean()}
    return parts["loss_locations"] + parts["loss_confidences"], parts


class Proposer:
    """A trained MultiBox at work."""

    def __init__(
        self, network: MultiBox, preprocessing: Preprocessing, canvas: int, batch: int, mesh: Mesh
    ) -> None:
        self._canvas, self._mesh = canvas, mesh
        self._batch = -(-batch // mesh.size) * mesh.size

        def propose(variables: Any, pixels: jax.Array, sizes: jax.Array) -> MultiBoxOutput:
            images = standardize(pixels, preprocessing, network.trunk.dtype)
            windows = jnp.concatenate([jnp.zeros_like(sizes), sizes], axis=1)[:, None]
            crops = warp(images, sizes, windows, preprocessing.size)[:, 0]
            return network.apply(variables, crops, train=False)

        whole, split = replicated(mesh), data_sharding(mesh)
        self._propose = jax.jit(propose, in_shardings=(whole, split, split), out_shardings=whole)

    def over(
        self,
        variables: Any,
        source: DetectionSource,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Boxes [K, 4] of each image in its pixels, the most confident first, their confidences'
        logits [K], and the images' sizes [N, 2].

        Raises:
          CutShort: `should_stop()`, asked before each batch, said so.
        """
        found, confidences, sizes = [], [], []
        for start in range(0, len(source), self._batch):
            if should_stop():
                raise CutShort
            chunk = range(start, min(start + self._batch, len(source)))
            images = [example["image"] for example in source.read(chunk)]
            boxes, logits = self.propose(variables, images)
            found += list(boxes)
            confidences += list(logits)
            sizes += [image.shape[:2] for image in images]
        return found, confidences, np.array(sizes, np.int32).reshape(-1, 2)

    def propose(
        self, variables: Any, images: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [N, K, 4] in the images' pixels, the most confident first, and logits [N, K]."""
        canvases = [to_canvas(image, self._canvas) for image in images]
        missing = self._batch - len(canvases)
        canvases += canvases[:1] * missing
        split = data_sharding(self._mesh)
        pixels = jax.device_put(np.stack([each.pixels for each in canvases]), split)
        on = jax.device_put(np.stack([each.size for each in canvases]), split)
        output = jax.device_get(self._propose(variables, pixels, on))
        order = np.argsort(-output.logits[: len(images)], axis=1, kind="stable")
        shares = np.clip(np.take_along_axis(output.boxes[: len(images)], order[..., None], 1), 0, 1)
        scale = np.array([(*image.shape[:2], *image.shape[:2]) for image in images], np.float32)
        logits = np.take_along_axis(output.logits[: len(images)], order, 1)
        return (shares * scale[:, None]).astype(np.float32), logits


def _evaluations(
    config: ConfigDict,
    network: MultiBox,
    preprocessing: Preprocessing,
    sources: Sequence[DetectionSource],
    mesh: Mesh,
) -> dict[str, Evaluate]:
    proposer = Proposer(
        network, preprocessing, config.multibox.canvas, config.eval_batch_size, mesh
    )
    one = jax.jit(functools.partial(matching_loss, alpha=config.multibox.alpha))

    def evaluation(source: DetectionSource) -> Evaluate:
        truth = [each.objects for each in source.annotations()]
        most = max(1, *(len(each.boxes) for each in truth))

        def evaluate(variables: Any, should_stop: Callable[[], bool]) -> dict[str, float]:
            boxes, logits, sizes = proposer.over(variables, source, should_stop)
            losses = []
            for found, confidence, objects, size in zip(boxes, logits, truth, sizes, strict=True):
                scale = np.array([*size, *size], np.float32)
                wanted = objects.boxes[~objects.ignored] / scale
                padded = np.zeros((most, 4), np.float32)
                padded[: len(wanted)] = wanted
                valid = np.arange(most) < len(wanted)
                losses.append(float(sum(one(found / scale, confidence, padded, valid))))
            share = recall(truth, boxes)
            return {"loss": float(np.mean(losses)), "recall": share, "examples": len(boxes)}

        return evaluate

    return {source.split: evaluation(source) for source in sources}


def load_proposer(run: str, mesh: Mesh) -> tuple[Proposer, Any]:
    """Reads the MultiBox of a run's folder: the proposer, and its variables on the mesh.

    Raises:
      UserError: the run is of another kind of task, or has no checkpoint.
    """
    trained = load(run)
    config = trained.config
    if config.get("task") != NAME:
        raise UserError(f"{run}: expected a run with task {NAME!r}, found {config.get('task')!r}")
    assert trained.preprocessing is not None  # a run has one
    proposer = Proposer(
        MultiBox(trained.model, config["multibox"]["boxes"]),
        trained.preprocessing,
        config["multibox"]["canvas"],
        config["eval_batch_size"],
        mesh,
    )
    return proposer, replicate(trained.variables, mesh)


def propose_split(run: str, source: DetectionSource, mesh: Mesh) -> Proposals:
    """Runs the MultiBox of a run's folder over a split. Raises UserError as `load_proposer`."""
    proposer, variables = load_proposer(run, mesh)
    boxes, _, sizes = proposer.over(variables, source)
    return Proposals(boxes, sizes, {"method": NAME, "run": run})


MULTIBOX = TaskKind(default_multibox_config, build, open_task)
register_task(NAME, MULTIBOX)
