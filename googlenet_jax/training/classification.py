"""Image classification, the default kind of task: a data set's images and labels, and a network of
`models`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.augment import apply_transforms, device_transforms
from googlenet_jax.data.bad_images import BadImages
from googlenet_jax.data.examples import as_sources, fold, per_class
from googlenet_jax.data.pipeline import RandomCrop, train_batches
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source, load_source
from googlenet_jax.errors import UserError, naming, nearest
from googlenet_jax.evaluation.evaluate import evaluate_source, make_eval_step
from googlenet_jax.evaluation.metrics import METRICS, Metric
from googlenet_jax.evaluation.set_metrics import SET_METRICS, SetMetric
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model, model_options
from googlenet_jax.runtime.process import shows_progress
from googlenet_jax.training.config import default_config
from googlenet_jax.training.losses import Loss, create_loss
from googlenet_jax.training.task import TASKS, Evaluate, Resolved, Task, TaskKind

_COLOURS = ("brightness", "contrast", "saturation", "hue")


def build_model(config: ConfigDict, num_classes: int) -> Network:
    """Builds a config's model.

    Raises UserError where the config's `model` or `dtype` do not make one.
    """
    options = config.model.options.to_dict()
    for name in ("num_classes", "dtype", "param_dtype"):
        if name in options:
            raise UserError(
                f"model.options.{name}: not an option of a config's model (the data set fixes the"
                " classes, `dtype` the types)"
            )
    options |= {"num_classes": num_classes, "dtype": jnp.dtype(config.dtype)}
    options["param_dtype"] = jnp.float64 if config.dtype == "float64" else jnp.float32
    if config.deterministic and jax.default_backend() == "gpu":
        # Deterministic XLA refuses or slows what the other pools' gradients become there.
        options.setdefault("forms", "indexed")
    with naming("model"):
        return create_model(config.model.name, **options)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config describes, built.

    Attributes:
      model: for as many classes as ImageNet has, until the data set's number is known.
      transforms: from the number of classes to what the device does to a batch.
    """

    model: Network
    preprocessing: Preprocessing
    crop: RandomCrop
    transforms: Callable[[int], Any]
    loss: Loss
    metrics: dict[str, Metric]
    set_metrics: dict[str, SetMetric]


def build(config: ConfigDict) -> Parts:
    """Raises UserError for a model, image sizes, augmentations, a loss or metrics that can't be."""
    # These check their own values.
    preprocessing = Preprocessing.from_dict(config.preprocessing.to_dict())
    crop = RandomCrop(tuple(config.augment.area), tuple(config.augment.aspect))
    model = build_model(config, num_classes=1000)
    training_size = config.augment.size or config.preprocessing.size
    trained = "augment.size" if config.augment.size else "preprocessing.size"
    for name, size, aux in (
        (trained, training_size, model.aux_heads),
        ("preprocessing.size", config.preprocessing.size, False),
    ):
        if problem := model.size_problem(size, size, aux):
            raise UserError(f"{name}: {config.model.name}: {problem}")
    if getattr(model, "fully_connected_head", False) and training_size != config.preprocessing.size:
        raise UserError(
            f"augment.size: a fully connected head takes one size, {config.preprocessing.size},"
            f" found {training_size}"
        )
    _check_memory("batch_size", config.batch_size, training_size)
    _check_memory("eval_batch_size", config.eval_batch_size, config.preprocessing.size)
    groups = getattr(model, "bn_groups", 1)
    if config.batch_size // config.devices.accumulate % groups:
        parts = config.devices.accumulate
        where = f" in each of devices.accumulate, {parts}, parts" if parts > 1 else ""
        raise UserError(
            f"batch_size: expected a multiple of model.options.bn_groups, {groups}{where}, found"
            f" {config.batch_size}"
        )
    loss = create_loss(**config.loss.to_dict())
    metrics, set_metrics = _metrics(config.metrics)
    if config.checkpoint.best.split("/")[0] not in ("loss", *metrics, *set_metrics):
        names = ", ".join(map(repr, ("loss", *metrics, *set_metrics)))
        raise UserError(
            f"checkpoint.best: expected one of {names}, found {config.checkpoint.best!r}"
        )
    transforms = functools.partial(_transforms, config, preprocessing)
    transforms(1000)
    return Parts(model, preprocessing, crop, transforms, loss, metrics, set_metrics)


def evaluated_loss(config: ConfigDict, loss: Loss) -> Callable[[Any, Any], Any] | None:
    """What an evaluation's loss is: a registered one's total; None for the plain cross entropy,
    without smoothing, class weights and auxiliary heads.
    """
    if config.loss.name == "cross_entropy":
        return None
    return lambda output, batch: loss(output, batch)[0]


def _check_memory(field: str, batch_size: int, size: int) -> None:
    """Raises UserError where not even the images of one batch, as bytes, fit the host's memory."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = batch_size * size**2 * 3
    if needed > memory:
        raise UserError(
            f"{field}: {batch_size:,} images of {size}×{size} take {needed / 1e9:,.0f} GB, and "
            f"the host has {memory / 1e9:,.0f}; take fewer"
        )


def open_task(resolved: Resolved, mesh: Mesh) -> Task:
    """Opens the config's data set.

    Raises UserError where there is no such data or split.
    """
    data = resolved.config.data
    splits = (data.train_split, *data.eval_splits)
    source, *eval_sources = (load_source(data.name, split, data.dir or None) for split in splits)
    return make_task(resolved, mesh, *_parts(data, source, eval_sources))


def task_of_given(
    resolved: Resolved, mesh: Mesh, train: Any, evaluations: Mapping[str, Any] | None
) -> Task:
    """Makes the task of data that a user hands over: see `gj.train`."""
    source, eval_sources = as_sources(train, evaluations)
    return make_task(resolved, mesh, *_parts(resolved.config.data, source, eval_sources))


def _parts(
    data: ConfigDict, source: Source, eval_sources: Sequence[Source]
) -> tuple[Source, list[Source]]:
    """The sources with the config's subset and fold."""
    held: list[Source] = []
    if data.fold:
        source, inside = fold(source, data.fold, data.subset_seed)
        held = [inside]
    if data.per_class:
        source = per_class(source, data.per_class, data.subset_seed)
    return source, [*held, *eval_sources]


def make_task(
    resolved: Resolved, mesh: Mesh, source: Source, eval_sources: Sequence[Source]
) -> Task:
    """Returns the task of training a config's model on `source` and evaluating it on the others."""
    config, parts = resolved.config, resolved.parts
    preprocessing, metrics = parts.preprocessing, parts.metrics
    model = parts.model.clone(num_classes=source.num_classes)
    model, channels = _with_channels(model, config, source)
    preprocessing = dataclasses.replace(preprocessing, dtype=np.dtype(source.dtype).name)
    loss = _with_class_weights(parts.loss, source)
    _check_labels(config, source)
    if config.checkpoint.best == "top5" and source.num_classes < 5:
        raise UserError(
            f"checkpoint.best: {source.name} has {source.num_classes} classes, too few for 'top5'"
        )
    size, data = preprocessing.size, config.data
    skips = data.on_bad_image == "skip"
    reading = {
        "threads": data.threads,
        "workers": data.workers,
        "bad_images": BadImages(data.bad_image_limit) if skips else None,
        "channels": channels,
    }
    return Task(
        model=model,
        inputs=lambda batch: (batch["image"],),
        example={"image": jnp.zeros((1, size, size, channels), jnp.dtype(config.dtype))},
        examples=len(source),
        batches=functools.partial(
            _batches,
            source,
            batch_size=config.batch_size,
            size=config.augment.size or size,
            augment=parts.crop,
            seed=config.seed,
            interpolation=config.augment.interpolation,
            exact_decoding=data.exact_decoding,
            sampling=data.sampling,
            **reading,
        ),
        prepare=functools.partial(apply_transforms, parts.transforms(source.num_classes)),
        loss=loss,
        metrics=metrics,
        evaluations=_evaluations(
            make_eval_step(
                model,
                preprocessing,
                mesh,
                metrics,
                evaluated_loss(config, loss),
                keeps_outputs=bool(parts.set_metrics),
            ),
            eval_sources,
            set_metrics=parts.set_metrics,
            batch_size=config.eval_batch_size,
            preprocessing=preprocessing,
            mesh=mesh,
            **reading,
        ),
        description={
            "model_name": config.model.name,
            "model_options": model_options(model),
            "class_names": tuple(source.class_names),
            "preprocessing": preprocessing.to_dict(),
            "data": source.identity(),
        },
    )


def _with_channels(model: Network, config: ConfigDict, source: Source) -> tuple[Network, int]:
    """The model for the source's images, and how many channels a batch's have: a grey image's one
    is repeated unless `model.options.in_channels` is 1.

    Raises UserError where the config says another number, or the preprocessing does.
    """
    channels = getattr(model, "in_channels", 3)
    if source.channels not in (1, channels):
        if "in_channels" in config.model.options:
            raise UserError(
                f"model.options.in_channels: the images of {source.name} have {source.channels} "
                f"channels, found {channels}"
            )
        channels = source.channels
        model = model.clone(in_channels=channels)
    for field in ("mean", "std"):
        if len(config.preprocessing[field]) not in (1, channels):
            raise UserError(
                f"preprocessing.{field}: expected {channels} numbers, a channel each, or one for "
                f"all, found {tuple(config.preprocessing[field])}"
            )
    if channels != 3:
        used = [name for name in (*_COLOURS, "lighting") if config.augment[name]]
        if config.preprocessing.channel_order != "rgb":
            raise UserError("preprocessing.channel_order: only images of 3 channels have one")
        if used:
            raise UserError(f"augment.{used[0]}: is of images of 3 channels, found {channels}")
    return model, channels


def _with_class_weights(loss: Loss, source: Source) -> Loss:
    """The loss with its option class_weights as numbers: "balanced" are N / (K · a class's
    examples).
    """
    weights = getattr(loss, "keywords", {}).get("class_weights")
    if not weights:
        return loss
    if weights == "balanced":
        if source.multi_label:
            raise UserError("loss.options.class_weights: 'balanced' takes one label an image")
        counts = np.bincount(source.labels(), minlength=source.num_classes)
        weights = (len(source) / (source.num_classes * np.maximum(counts, 1))).tolist()
    if isinstance(weights, str) or len(weights) != source.num_classes:
        raise UserError(
            f"loss.options.class_weights: expected 'balanced' or {source.num_classes} numbers, a "
            f"class each, found {weights!r}"
        )
    return functools.partial(loss, class_weights=tuple(weights))


def _check_labels(config: ConfigDict, source: Source) -> None:
    """Raises UserError for a loss or metrics that take one label an image where there are
    several.
    """
    if not source.multi_label:
        return
    if config.loss.name == "cross_entropy":
        raise UserError(
            "loss.name: an image of these data has several labels; take 'binary_cross_entropy', or "
            "one of your own"
        )
    single = [name for name in config.metrics if name in ("top1", "top5")]
    if single or config.augment.mixup or config.augment.cutmix:
        raise UserError(
            f"metrics: {', '.join(single) or 'MixUp'} takes one label an image, and these data have"
            " several; take ('mean_average_precision',) and checkpoint.best with it"
        )


def _metrics(names: Sequence[str]) -> tuple[dict[str, Metric], dict[str, SetMetric]]:
    """The metrics that are means over examples, and those of a whole set."""
    of_examples = {name: METRICS[name] for name in names if name in METRICS}
    of_sets = {name: SET_METRICS[name] for name in names if name in SET_METRICS}
    for name in names:
        if name not in {**of_examples, **of_sets}:
            known = [*METRICS, *SET_METRICS]
            raise UserError(
                f"metrics: expected some of {', '.join(map(repr, known))}, found {name!r}"
                f"{nearest(name, known)}; --import MODULE imports your own registrations"
            )
    return of_examples, of_sets


def _transforms(config: ConfigDict, preprocessing: Preprocessing, num_classes: int) -> Any:
    augment = config.augment
    try:
        return device_transforms(
            preprocessing,
            dtype=jnp.dtype(config.dtype),
            num_classes=num_classes,
            mirror=augment.flip,
            jitter={name: augment[name] for name in _COLOURS},
            lighting_std=augment.lighting,
            names=augment.transforms,
            options=augment.options.to_dict(),
            mixup=augment.mixup,
            cutmix=augment.cutmix,
        )
    except UserError as error:
        group = "augment." if str(error).startswith("options.") else "augment.transforms: "
        raise UserError(f"{group}{error}") from error


def _batches(source: Source, start_step: int, **options: Any) -> Any:
    """This process's share of the batches from that step's on."""
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return train_batches(source, start_step=start_step, **options, **processes)


def _evaluations(eval_step: Any, sources: Sequence[Source], **options: Any) -> dict[str, Evaluate]:
    def evaluation(source: Source) -> Evaluate:
        return lambda variables, should_stop: evaluate_source(
            eval_step,
            variables,
            source,
            progress=shows_progress(),
            should_stop=should_stop,
            **options,
        )

    return {source.split: evaluation(source) for source in sources}


CLASSIFICATION = TaskKind(default_config, build, open_task, task_of_given)
TASKS.register("classification", CLASSIFICATION)
