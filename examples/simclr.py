"""SimCLR (arXiv 2002.05709) as a task: a network learns from pairs of views, without labels.

    googlenet-jax train --import simclr --config=simclr.py --workdir=runs/simclr
    googlenet-jax train --config=digits --workdir=runs/finetuned --config.init_from=runs/simclr --config.data.per_class=10

(from the folder examples/). `gj.load("runs/simclr")` gives the network without its projection.

On digits' 360 test images, after 20 epochs without labels: the nearest training image is of the
same class for 97.2 %. Fine-tuned on ten labels a class (9 steps, raw weights) 90.6 %, the same from
random weights 10.0 %. One seed; four CPU minutes on an AMD EPYC.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import googlenet_jax as gj
from googlenet_jax.data.photometric import color_jitter
from googlenet_jax.data.pipeline import eval_batches
from googlenet_jax.data.preprocessing import standardize
from googlenet_jax.data.sources import Source, load_source
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.config import default_config
from googlenet_jax.training.task import Resolved, Task, TaskKind


class SimCLR(nn.Module):
    """A network and the two layers that project its features; views [N, 2, S, S, 3] → [N, 2, D]."""

    encoder: Any
    size: int = 64

    @nn.compact
    def __call__(self, views: jax.Array, train: bool) -> jax.Array:
        images = views.reshape(-1, *views.shape[2:])
        features = self.encoder(images, train=train, aux=False).features
        hidden = nn.relu(nn.Dense(self.size, name="hidden")(features))
        projected = nn.Dense(self.size, name="projection")(hidden)
        return projected.reshape(*views.shape[:2], -1)


def nt_xent(projected: jax.Array, batch: Any, temperature: float) -> Any:
    """Each view's cross entropy of its partner among all other views."""
    count = len(projected)
    views = projected.swapaxes(0, 1).reshape(2 * count, -1)
    views = views / jnp.maximum(jnp.linalg.norm(views, axis=1, keepdims=True), 1e-6)
    likeness = views @ views.T / temperature - 1e9 * jnp.eye(2 * count)
    partners = (jnp.arange(2 * count) + count) % (2 * count)
    losses = -jax.nn.log_softmax(likeness)[jnp.arange(2 * count), partners]
    hits = (likeness.argmax(1) == partners).mean()
    return losses.mean(), {"partners_found": hits}


def two_views(
    preprocessing: Any, dtype: Any, config: ConfigDict, batch: Any, key: jax.Array
) -> Any:
    """Two random crops of each image of the host's, in other colours."""

    def view(key: jax.Array) -> jax.Array:
        crop_key, colour_key = jax.random.split(key)
        images = batch["image"].astype(jnp.float32)
        moved = jax.vmap(functools.partial(crop, config.simclr.area))(
            images, jax.random.split(crop_key, len(images))
        )
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.0}
        changed = color_jitter({"image": moved}, colour_key, **jitter)["image"]
        return standardize(changed, preprocessing, dtype)

    views = jax.vmap(view, out_axes=1)(jax.random.split(key, 2))
    return batch | {"views": views}


def crop(area: tuple[float, float], image: jax.Array, key: jax.Array) -> jax.Array:
    """A square of a random share of an image's area at a random place, scaled to its size."""
    size_key, place_key = jax.random.split(key)
    side = jnp.sqrt(jax.random.uniform(size_key, minval=area[0], maxval=area[1]))
    height, width, _ = image.shape
    start = jax.random.uniform(place_key, (2,)) * (1 - side) * jnp.array([height, width])
    scale = jnp.full(2, 1 / side)
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -start * scale, "linear", antialias=False
    )


def neighbours(
    config: ConfigDict, encoder: Any, preprocessing: Any, train: Source, test: Source
) -> Any:
    """How many test images' nearest training image, by the cosine of features, is of their class."""

    @jax.jit
    def embed(variables: Any, images: jax.Array) -> jax.Array:
        own = {kind: tree["encoder"] for kind, tree in variables.items()}
        inputs = standardize(images, preprocessing, encoder.dtype)
        features = encoder.apply(own, inputs, train=False).features
        return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-6)

    def features(variables: Any, source: Source) -> tuple[np.ndarray, np.ndarray]:
        size = min(config.eval_batch_size, len(source))
        batches = eval_batches(source, batch_size=size, preprocessing=preprocessing)
        parts = [(embed(variables, each["image"]), each["label"]) for each in batches]
        found, labels = (np.concatenate(each)[: len(source)] for each in zip(*parts, strict=True))
        return found, labels

    def evaluate(variables: Any, should_stop: Any) -> dict[str, float]:
        known, labels = features(variables, train)
        asked, own = features(variables, test)
        hits = labels[(asked @ known.T).argmax(1)] == own
        return {"loss": 1 - hits.mean(), "top1": hits.mean(), "examples": len(own)}

    return evaluate


def open_task(resolved: Resolved, mesh: Mesh) -> Task:
    """The classification's data and network, otherwise trained."""
    config, preprocessing = resolved.config, resolved.parts.preprocessing
    task = CLASSIFICATION.open(resolved, mesh)
    images, data = task.example["image"], config.data
    train, *tests = (
        load_source(data.name, split, data.dir or None)
        for split in (data.train_split, *data.eval_splits)
    )
    return dataclasses.replace(
        task,
        model=SimCLR(task.model),
        inputs=lambda batch: (batch["views"],),
        example={"views": jnp.stack([images, images], axis=1)},
        prepare=functools.partial(two_views, preprocessing, images.dtype, config),
        loss=functools.partial(nt_xent, temperature=config.simclr.temperature),
        metrics={},
        evaluations={
            test.split: neighbours(config, task.model, preprocessing, train, test) for test in tests
        },
        description={**task.description, "part": "encoder"},
    )


def simclr_config() -> ConfigDict:
    """A classification's config with this task's fields."""
    config = default_config()
    config.task = "simclr"
    config.simclr = ConfigDict({"temperature": 0.2, "area": (0.3, 1.0)})
    return config


gj.register_task("simclr", TaskKind(simclr_config, CLASSIFICATION.build, open_task))


def get_config(arg: str = "") -> ConfigDict:
    """The digits, narrow."""
    config = simclr_config()
    config.model.name = "googlenet_bn"
    config.model.options.update(stem="small", width=0.25, aux_heads=False)
    config.data.update(name="digits", eval_splits=("test",), threads=2)
    config.preprocessing.update(size=32, resize=32, mean=(77.9,) * 3, std=(95.9,) * 3)
    config.augment.update(area=(0.9, 1.0), aspect=(0.9, 1.1), flip=False)
    config.update(batch_size=128, eval_batch_size=120, duration="20 epochs")
    config.update(eval_every="5 epochs", checkpoint_every="5 epochs", log_every="5 steps")
    config.optimizer.update(nesterov=True, weight_decay=1e-4)
    config.schedule.update(learning_rate=0.1, warmup="1 epoch")
    return config
