"""`explain`: what in an image a network answers to, and what its layers see."""

import dataclasses
import functools
import inspect
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from PIL import Image

from googlenet_jax.data.image_kind import RGB, shown
from googlenet_jax.data.imagenet import readable_names
from googlenet_jax.data.preprocessing import normalize
from googlenet_jax.errors import UserError, check_whole, nearest
from googlenet_jax.interpretability import drawing
from googlenet_jax.interpretability.attribution import (
    enlarge,
    grad_cam,
    integrated_gradients,
    occlusion,
)
from googlenet_jax.interpretability.dream import deep_dream
from googlenet_jax.models.endpoints import endpoints
from googlenet_jax.models.network import Network
from googlenet_jax.runtime.storage import write_atomically, writing
from googlenet_jax.weights.trained_model import TrainedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What `explain` found; a notebook shows its picture.

    Attributes:
      method: one of METHODS.
      image: what the network saw, `[S, S, C]`; None where there was no image.
      picture: uint8 `[H, W, 3]`, for people.
      values: the numbers: of "gradcam" `[S, S]`, at least 0; of "integrated" `[S, S, C]`, in units
        of the logit; of "occlusion" `[S, S]`, lost probability; of "filters" the kernels `[h, w, C,
        K]`; of "activations" `[K, h, w]`, the strongest channels; of "deepdream" the picture.
      layer: the endpoint that was looked at; None where the method takes the whole network.
      class_name, probability: the class that it is about, and what the network gives it.
      note: what a person should know.
    """

    method: str
    image: np.ndarray | None
    picture: np.ndarray
    values: np.ndarray
    layer: str | None = None
    class_name: str | None = None
    probability: float | None = None
    note: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture, as its ending says. Raises UserError where that can't be done."""
        ending = Path(path).suffix.lower()
        if ending not in (".png", ".jpg", ".jpeg", ".webp"):
            raise UserError(f"{path}: expected a name that ends in .png, .jpg or .webp")
        form = Image.registered_extensions()[ending]
        with writing(path):
            write_atomically(Path(path), lambda part: self._drawn().save(part, form))

    def _drawn(self) -> Image.Image:
        return Image.fromarray(self.picture)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._drawn().save(buffer, "PNG")
        return buffer.getvalue()


class _Subject(NamedTuple):
    trained: TrainedModel
    image: np.ndarray  # [S, S, C]
    target: int  # a logit's index

    @property
    def inputs(self) -> jax.Array:
        """[1, S, S, C], normalised."""
        assert self.trained.preprocessing is not None  # `crops` has checked it
        return normalize(
            jnp.asarray(self.image)[None], self.trained.preprocessing, self.trained.model.dtype
        )


class _Found(NamedTuple):
    values: np.ndarray
    picture: np.ndarray
    layer: str | None = None
    note: str = ""


def explain(
    trained: TrainedModel,
    image: Any = None,
    method: str = "gradcam",
    *,
    target: int | str | None = None,
    **options: Any,
) -> Explanation:
    """Shows what in an image a network answers to, or what its layers see.

    - "gradcam" (`layer`: the last module): where the layer's channels speak for the class.
    - "occlusion" (`window`, `stride`, in pixels): what probability the class loses where a square
      covers the image.
    - "integrated" (`steps`, `baseline`, a colour from 0 to 255): each pixel's share of the class's
      logit.
    - "filters": the first convolution's kernels; without an image.
    - "activations" (`layer`, `count`): a layer's strongest channels.
    - "deepdream" (`layer`, `channel`, `octaves`, `scale`, `steps`, `rate`, `jitter`, `seed`): the
      image changed until the layer answers more strongly.

    Args:
      trained: as `gj.load` returns it.
      image: a path, a `PIL.Image` or an array, as `TrainedModel` takes them; its centre crop is looked at.
      target: the class, a name or a label; the most probable one where it is not given.
      options: the method's own, as above.
    Raises:
      UserError: an unknown method, option, class or layer, an image that can't be read, or weights
        without a classifier or preprocessing.
    """
    check_method(method, options)
    work = METHODS[method]
    if method == "filters":
        found = work(trained)
        return Explanation(method, None, found.picture, found.values, found.layer)
    crop = trained.crops([image] if image is not None else [])[0]
    trained.check_complete()
    logits = trained.logits(crop)[0].astype(np.float64)[trained.class_offset :]
    if not np.isfinite(logits).all():
        raise UserError("the network's outputs are not finite; take other weights")
    label = _label(trained, target, int(logits.argmax()))
    shares = np.exp(logits - logits.max())
    found = work(_Subject(trained, crop, label + trained.class_offset), **options)
    name = readable_names(trained.labels)[label] if trained.labels else str(label)
    return Explanation(
        method,
        crop,
        found.picture,
        found.values,
        found.layer,
        name,
        float(shares[label] / shares.sum()),
        found.note,
    )


def check_method(method: str, options: Iterable[str]) -> None:
    """Raises UserError unless there is a method of that name, which has options of these names."""
    if method not in METHODS:
        raise UserError(
            f"method: expected one of {', '.join(METHODS)}, found {method!r}"
            f"{nearest(method, METHODS)}"
        )
    known = list(inspect.signature(METHODS[method]).parameters)[1:]
    for name in options:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UserError(
                f"{method}: there is no option {name!r}{nearest(name, known)}; it has {listed}"
            )


def _label(trained: TrainedModel, target: int | str | None, best: int) -> int:
    if target is None:
        return best
    if isinstance(target, str) and trained.labels:
        for names in (trained.labels, readable_names(trained.labels)):
            if target in names:
                return names.index(target)
        known = readable_names(trained.labels)
        raise UserError(f"target: there is no class {target!r}{nearest(target, known)}")
    return check_whole("target", target, 0, trained.num_classes - 1)


def _gradcam(subject: _Subject, layer: str | None = None) -> _Found:
    trained = subject.trained
    shapes = _maps(trained.model, trained.variables, subject.inputs)
    layer = _layer(layer, shapes, _modules(shapes)[-1])
    found = grad_cam(
        trained.model, trained.variables, subject.inputs, jnp.int32(subject.target), layer
    )
    small, size = np.asarray(found, np.float32)[0], subject.image.shape[:2]
    heat = np.asarray(enlarge(found, size), np.float32)[0]
    note = "" if small.any() else "nothing in this layer speaks for the class: the map is 0"
    return _Found(heat, drawing.over(shown(subject.image), heat), layer, note)


def _occlusion(subject: _Subject, window: int | None = None, stride: int | None = None) -> _Found:
    trained, size = subject.trained, min(subject.image.shape[:2])
    window = check_whole("window", max(1, size // 5) if window is None else window, 1, size)
    stride = check_whole("stride", max(1, window // 3) if stride is None else stride, 1)
    values = occlusion(
        trained.model,
        trained.variables,
        subject.inputs[0],
        subject.target,
        window,
        stride,
        trained.class_offset,
    )
    return _Found(values, drawing.over_signed(shown(subject.image), values))


def _integrated(
    subject: _Subject, steps: int = 64, baseline: Sequence[float] | None = None
) -> _Found:
    trained = subject.trained
    steps = check_whole("steps", steps, 1)
    channels, dtype = trained.images
    baseline = (0,) * channels if baseline is None else baseline
    lowest, highest = {"uint8": (0, 255), "uint16": (0, 2**16 - 1)}.get(dtype, (-1e30, 1e30))
    if len(baseline) != channels or not all(lowest <= value <= highest for value in baseline):
        count = {1: "one number", 3: "three numbers"}.get(channels, f"{channels} numbers")
        raise UserError(
            f"baseline: expected {count} from {lowest:g} to {highest:g}, found {baseline}"
        )
    plain = np.broadcast_to(np.array(baseline, dtype), subject.image.shape)
    start = _Subject(trained, plain, subject.target).inputs[0]
    values, gap = integrated_gradients(
        trained.model, trained.variables, subject.inputs[0], start, subject.target, steps
    )
    picture = drawing.over_signed(shown(subject.image), values.sum(-1))
    return _Found(values, picture, note=f"the sum misses the logits' difference by {gap:.2g}")


def _filters(trained: TrainedModel) -> _Found:
    params = traverse_util.flatten_dict(trained.variables["params"], sep="/")
    ours = [name for name in params if name.endswith("/kernel")]
    layer = next((name for name in ("conv1", "conv1a") if f"{name}/kernel" in params), None)
    if layer is None:
        raise UserError(
            f"filters: expected a first convolution, conv1, among {', '.join(ours[:5])}"
        )
    first = params.get(f"{layer}/depthwise_kernel", params[f"{layer}/kernel"])
    kernels = np.asarray(first, np.float32)
    rgb = kernels
    if trained.preprocessing and trained.preprocessing.channel_order == "bgr":
        rgb = kernels[:, :, ::-1]
    if rgb.shape[2] != 3:
        rgb = rgb.mean(2, keepdims=True).repeat(3, 2)
    tiles = [drawing.stretched(rgb[..., number]) for number in range(rgb.shape[-1])]
    return _Found(kernels, drawing.tiled(tiles), layer)


def _activations(subject: _Subject, layer: str | None = None, count: int = 16) -> _Found:
    trained = subject.trained
    shapes = _maps(trained.model, trained.variables, subject.inputs)
    layer = _layer(layer, shapes, _modules(shapes)[0])
    count = check_whole("count", count, 1)
    maps = endpoints(trained.model, trained.variables, subject.inputs, (layer,))[layer][0]
    found = np.asarray(maps, np.float32).transpose(2, 0, 1)
    order = np.argsort(-found.mean((1, 2)), kind="stable")[:count]
    found = np.maximum(found[order], 0)
    note = f"channels {', '.join(map(str, order.tolist()))}"
    return _Found(found, drawing.tiled([drawing.coloured(each) for each in found]), layer, note)


def _deepdream(
    subject: _Subject,
    layer: str | None = None,
    channel: int | None = None,
    octaves: int = 4,
    scale: float = 1.4,
    steps: int = 10,
    rate: float = 1.5,
    jitter: int = 32,
    seed: int = 0,
) -> _Found:
    trained = subject.trained
    assert trained.preprocessing is not None
    if trained.images != RGB:
        raise UserError(f"deepdream: changes {RGB}, and {trained.source} takes {trained.images}")
    if layer is None:
        modules = _modules(_maps(trained.model, trained.variables, subject.inputs))
        layer = modules[len(modules) // 2]
    check_whole("octaves", octaves, 1)
    check_whole("steps", steps, 1)
    if not scale > 1:
        raise UserError(f"scale: expected a number above 1, found {scale}")
    dreamt = deep_dream(
        trained.model,
        trained.variables,
        subject.image,
        trained.preprocessing,
        layer,
        channel=channel,
        octaves=octaves,
        scale=scale,
        steps=steps,
        rate=rate,
        jitter=check_whole("jitter", jitter, 0),
        seed=check_whole("seed", seed, 0),
    )
    return _Found(dreamt, drawing.magnified(dreamt), layer)


# Name → what does it; its arguments behind the first are the method's options.
METHODS: dict[str, Callable[..., _Found]] = {
    "gradcam": _gradcam,
    "occlusion": _occlusion,
    "integrated": _integrated,
    "filters": _filters,
    "activations": _activations,
    "deepdream": _deepdream,
}


def _maps(model: Network, variables: Any, inputs: jax.Array) -> dict[str, tuple[int, ...]]:
    """The endpoints that are maps, and their shapes, in the network's order; nothing is computed."""
    function = functools.partial(endpoints, model)
    # Names alone keep their order: a dictionary's keys are sorted on the way through JAX.
    names: list[str] = []

    def named(variables: Any, inputs: jax.Array) -> dict[str, jax.Array]:
        found = function(variables, inputs)
        names.extend(found)
        return found

    shapes = jax.eval_shape(named, variables, inputs)
    found = {name: shapes[name].shape for name in names if len(shapes[name].shape) == 4}
    if not found:
        raise UserError(
            f"{type(model).__name__} names no activations that are maps: its layers are not those "
            "of `Layers`, and sow none; choose the method occlusion, integrated or filters"
        )
    return found


def _modules(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The endpoints that have others inside them; where none has, all."""
    inner = {name.split("/")[0] for name in shapes if "/" in name}
    found = [name for name in shapes if name in inner and not name.startswith("aux")]
    return found or [name for name in shapes if "/" not in name]


def _layer(given: str | None, shapes: dict[str, tuple[int, ...]], default: str) -> str:
    if given is None:
        return default
    if given not in shapes or given.startswith("aux"):
        raise UserError(
            f"layer: expected one that is a map, such as {default}, found {given!r}"
            f"{nearest(given, shapes)}"
        )
    return given
