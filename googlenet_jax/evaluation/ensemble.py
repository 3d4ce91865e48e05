"""Class probabilities of an ensemble over several crops, in one pass over the images.

Each image is decoded once and uploaded once for all models and crops. The centre crop is
`data.pipeline.eval_image`'s, made on the host, so that it is bit for bit the one that training
evaluates; the ten and 144 crops are cut on the device (`evaluation.crops`), once for each input
size among the models. Probabilities are averaged over crops, then over models, as logarithms, so
that none becomes zero.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from googlenet_jax.data.image_kind import ImageKind, kind_of
from googlenet_jax.data.imagenet import class_names as imagenet_names
from googlenet_jax.data.imagenet import imagenet_classes
from googlenet_jax.data.pipeline import eval_image
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.data.resampling import INTERPOLATIONS
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.crops import CROPS, Geometry, cut, geometry, ten_of_144, view_count
from googlenet_jax.models.network import Network
from googlenet_jax.runtime.process import log
from googlenet_jax.runtime.sharding import data_sharding, replicated

Item = TypeVar("Item")
About = TypeVar("About")
Images = Sequence[np.ndarray]
Kind = tuple[int, str]  # input size and interpolation


class Member(Protocol):
    """A trained network and what it takes to use it: a `weights.trained_model.TrainedModel`.

    Attributes:
      source: its name, for people.
      class_offset: how many logits stand before the first class. They are left out before the
        softmax.
      labels: the names of the classes, in the order of the logits from `class_offset` on; None
        where they are not known.
    """

    @property
    def source(self) -> str: ...
    @property
    def model(self) -> Network: ...
    @property
    def variables(self) -> dict[str, Any]: ...
    @property
    def preprocessing(self) -> Preprocessing | None: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...
    @property
    def class_offset(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    def check_complete(self) -> None: ...


class Inputs(NamedTuple):
    """Some images on the host, as `Ensemble.prepare` makes them.

    Attributes:
      images_given: how many images there are; the rest of each array is padding.
      square: whether all of them are as high as wide.
      centres: for each preprocessing the centre crops, [B, S, S, C].
      images: uint8 [B, H, W, C], in the upper left corners; None where only centres are wanted.
      places: for each input size and interpolation where the other crops lie.
    """

    images_given: int
    square: bool
    centres: dict[Preprocessing, np.ndarray]
    images: np.ndarray | None
    places: dict[Kind, Geometry]


class Ensemble:
    """Networks whose predictions are averaged.

    Attributes:
      crops: the numbers of crops of which there are results, such as (1, 10, 144).
      class_names: in the order of the probabilities.
      images_at_a_time: how many images `prepare` takes at most.
      images: which images all members take.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        crops: int = 1,
        batch_size: int,
        mesh: Mesh,
        class_names: Sequence[str] | None = None,
        images_at_most: int | None = None,
    ) -> None:
        """Sets up the members on the devices of `mesh`, whose one axis is "data".

        Args:
          crops: 1, 10 or 144; the smaller numbers come with it.
          batch_size: crops that the devices together take at a time, about; bounds the memory.
          class_names: the classes that are wanted; by default the first member's.
          images_at_most: how many images there will be.
        Raises:
          UserError: a number that is impossible, or members whose classes or kinds of images are
            not the same.
        """
        if crops not in CROPS:
            raise UserError(f"crops: expected 1, 10 or 144, found {crops}")
        if batch_size < 1:
            raise UserError(f"batch size: expected at least 1, found {batch_size}")
        for member in members:
            member.check_complete()
        self.members = tuple(members)
        self.crops = CROPS[: CROPS.index(crops) + 1]
        self.class_names = _class_names(self.members, class_names)
        self.images = _images(self.members, crops)
        self._devices = mesh.devices.size
        self._split_over = data_sharding(mesh)
        self._whole = replicated(mesh)
        self._variables = [jax.device_put(member.variables, self._whole) for member in self.members]
        self._networks = [_network(member, self.class_names) for member in self.members]
        self._preprocessings = list(dict.fromkeys(map(_preprocessing, self.members)))
        # One set of crops serves all members of one input size and interpolation.
        kinds = dict.fromkeys(map(_kind, self._preprocessings))
        self._kinds = list(kinds) if crops > 1 else []

        rows = max(1, batch_size // self._devices)
        views = 1 if crops == 1 else 1 + crops
        images = rows if crops == 1 else -(-4 * rows // views)
        if images_at_most is not None:
            images = max(1, min(images, -(-images_at_most // self._devices)))
        self._rows = -(
            -images * views // -(-images * views // rows)
        )  # so that no pass is half full
        self.images_at_a_time = images * self._devices

    def run(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Images, About]], threads: int
    ) -> Iterator[tuple[About, np.ndarray]]:
        """Goes through all items in order: reads in threads, a batch ahead of the devices.

        Args:
          items: whatever `read` understands, such as the number of a first example; may be endless.
          read: item -> up to `images_at_a_time` images as `prepare` takes them, and what is to be
            given back beside their results.
        Yields:
          What `read` gave back, and logarithms of probabilities as `fetch` returns them.
        """

        def prepare(item: Item) -> tuple[Inputs | None, About]:
            images, about = read(item)
            return self.prepare(images) if images else None, about

        def fetch(launched: list[jax.Array], count: int, about: About) -> tuple[About, np.ndarray]:
            return about, self.fetch(launched, count)

        waiting: tuple[list[jax.Array], int, About] | None = None
        for inputs, about in _in_order(prepare, items, max(1, threads)):
            if inputs is None:
                if waiting is not None:
                    yield fetch(*waiting)
                waiting = None
                shape = (0, len(self.members), len(self.crops), len(self.class_names))
                yield about, np.zeros(shape, np.float32)
                continue
            computing = self.launch(inputs), inputs.images_given, about
            if waiting is not None:
                yield fetch(*waiting)
            waiting = computing
        if waiting is not None:
            yield fetch(*waiting)

    def prepare(self, images: Sequence[np.ndarray]) -> Inputs:
        """Makes the arrays that go to the devices; on the host alone, in any thread.

        Args:
          images: up to `images_at_a_time` of the members' kind, or of one channel, of any sizes.
        """
        total, (channels, dtype) = self.images_at_a_time, self.images
        centres = {}
        for preprocessing in self._preprocessings:
            size = preprocessing.size
            centres[preprocessing] = np.zeros((total, size, size, channels), dtype)
            for row, image in enumerate(images):
                centres[preprocessing][row] = eval_image(image, preprocessing)
        square = all(image.shape[0] == image.shape[1] for image in images)
        if not self._kinds:
            return Inputs(len(images), square, centres, None, {})
        sizes = [image.shape[:2] for image in images]
        height, width = (_padded(side) for side in np.max(sizes, axis=0).tolist())
        padded = np.zeros((total, height, width, channels), dtype)
        for row, image in enumerate(images):
            padded[row, : image.shape[0], : image.shape[1]] = image
        sizes += [(1, 1)] * (total - len(images))
        places = {kind: geometry(sizes, kind[0]) for kind in self._kinds}
        return Inputs(len(images), square, centres, padded, places)

    def launch(self, inputs: Inputs) -> list[jax.Array]:
        """Starts the computation, and returns without waiting for it: what `fetch` takes."""
        images = jax.device_put(inputs.images, self._split_over)
        others = {
            (size, interpolation): cut(
                images,
                jax.device_put(places, self._split_over),
                size=size,
                crops=self.crops[-1],
                square=inputs.square,
                interpolation=interpolation,
            )
            for (size, interpolation), places in inputs.places.items()
        }
        sets = _view_sets(self.crops, inputs.square)
        batches = {}
        for preprocessing, centre in inputs.centres.items():
            batches[preprocessing] = _split(
                jax.device_put(centre, self._split_over),
                others.get(_kind(preprocessing)),
                devices=self._devices,
                rows=self._rows,
                sharding=self._split_over,
            )
        results = []
        for member, variables, network in zip(
            self.members, self._variables, self._networks, strict=True
        ):
            parts = tuple(network(variables, batch) for batch in batches[_preprocessing(member)])
            views = 1 + (view_count(self.crops[-1], inputs.square) if others else 0)
            shape = (self._devices, self.images_at_a_time // self._devices, views)
            results.append(_average(parts, shape=shape, sets=sets, sharding=self._whole))
        return results

    def fetch(self, launched: Sequence[jax.Array], count: int) -> np.ndarray:
        """Waits for what `launch` started, for so many images.

        Returns:
          Logarithms of probabilities [count, models, crops, classes], float32 or wider: of each
          model alone, averaged over each number of crops.
        """
        return np.stack([np.asarray(each)[:count] for each in launched], axis=1)


def _in_order(
    function: Callable[[Item], About], items: Iterable[Item], threads: int
) -> Iterator[About]:
    """Calls `function` in threads, a few items ahead, and gives the results in the items' order."""
    ahead: deque[Future[About]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def average_of_prefixes(log_probabilities: np.ndarray) -> np.ndarray:
    """Averages the probabilities of the first 1, 2, … models.

    Takes and returns logarithms [N, models, crops, classes]; the arithmetic is float64.
    """
    values = log_probabilities.astype(np.float64)
    counts = np.arange(1, values.shape[1] + 1)[:, None, None]
    return np.logaddexp.accumulate(values, axis=1) - np.log(counts)


def _class_names(members: Sequence[Member], wanted: Sequence[str] | None) -> tuple[str, ...]:
    first = members[0]
    numbers = tuple(map(str, range(first.num_classes)))
    names = tuple(wanted if wanted is not None else first.labels or numbers)
    for member in members:
        if member.num_classes != len(names) and matched_classes(member.labels, names) is None:
            whose = "the data set" if wanted is not None else first.source
            raise UserError(
                f"{member.source}: expected a model of {len(names)} classes, as {whose} has, or one"
                " whose class names or WordNet ids are among its own, found"
                f" {member.num_classes}{_unmatched(member.labels, names)}"
            )
        _warn_of_other_names(member, names, "the data set" if wanted is not None else first.source)
    return names


def _warn_of_other_names(member: Member, names: Sequence[str], whose: str) -> None:
    """Says where a member's classes are called otherwise, as then their positions decide."""
    own = member.labels
    if own is None or matched_classes(own, names) is not None:
        return
    place = next((i for i, (a, b) in enumerate(zip(own, names, strict=True)) if a != b), 0)
    log(
        f"warning: {member.source} calls its classes otherwise than {whose}, so their positions "
        f"decide: number {place} is {own[place]!r} there and {names[place]!r} here"
    )


def matched_classes(labels: Sequence[str] | None, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Which of a model's classes the wanted ones are, by name or WordNet id; None where one of
    them is none of the model's, or two are the same.

    Upper and lower case, blanks and underscores don't count. A model has ImageNet's WordNet ids
    where its class names are ImageNet's.
    """
    if labels is None:
        return None
    plain = [_plain(label) for label in labels]
    # A name that two classes have tells neither.
    places = {name: index for index, name in enumerate(plain) if plain.count(name) == 1}
    if tuple(labels) == imagenet_names():
        places |= {entry.wordnet_id: i for i, entry in enumerate(imagenet_classes())}
    found = [places.get(_plain(name)) for name in wanted]
    if None in found or len(set(found)) < len(found):
        return None
    return tuple(index for index in found if index is not None)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _unmatched(labels: Sequence[str] | None, wanted: Sequence[str]) -> str:
    """Which of the data set's classes the model lacks, in words."""
    if labels is None:
        return " classes without names"
    missing = [name for name in wanted if matched_classes(labels, (name,)) is None]
    if not missing:
        return ", two of them under one name"
    return f"; it has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"


def _images(members: Sequence[Member], crops: int) -> ImageKind:
    """Which images the members take."""
    first, *others = [kind_of(each.model, each.preprocessing) for each in members]
    for member, kind in zip(members[1:], others, strict=True):
        if kind != first:
            raise UserError(
                f"{member.source}: takes {kind}, and {members[0].source} {first}; members of one "
                "ensemble take the same"
            )
    if crops > 1 and first.dtype != "uint8":
        raise UserError(
            f"crops: {crops} are cut of uint8 images, and {members[0].source} takes {first}; take 1"
        )
    return first


def _preprocessing(member: Member) -> Preprocessing:
    return cast(Preprocessing, member.preprocessing)  # `check_complete` has found one


def _kind(preprocessing: Preprocessing) -> Kind:
    # One that names no interpolation scales as `eval_image` does.
    return preprocessing.size, getattr(preprocessing, "interpolation", INTERPOLATIONS[0])


def _network(member: Member, class_names: Sequence[str]) -> Any:
    """The compiled (variables, images [R, S, S, C]) -> logarithms of probabilities [R, classes]."""
    order = np.arange(len(class_names))
    own = member.labels
    if own != tuple(class_names):
        # The same classes in another order, or some of them: the softmax is over these alone.
        found = matched_classes(own, class_names)
        order = order if found is None else np.array(found)
    columns = member.class_offset + order

    def apply(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        pixels = normalize(images, _preprocessing(member), member.model.dtype)
        output: Any = member.model.apply(variables, pixels, train=False)
        return jax.nn.log_softmax(output.logits[:, columns])

    return jax.jit(apply)


def _padded(side: int) -> int:
    """Rounds a side up, so that images of many sizes need few compilations of `cut`."""
    step = 64 if side <= 512 else 512
    return -(-side // step) * step


def _view_sets(crops: Sequence[int], square: bool) -> tuple[tuple[int, ...], ...]:
    """Which views are averaged for each number of crops; view 0 is the centre crop."""
    every = tuple(range(1, 1 + view_count(crops[-1], square)))
    ten = tuple((1 + ten_of_144(square)).tolist()) if crops[-1] == 144 else every
    return ((0,), ten, every)[: len(crops)]


@functools.partial(jax.jit, static_argnames=("devices", "rows", "sharding"))
def _split(
    centre: jax.Array, others: jax.Array | None, *, devices: int, rows: int, sharding: NamedSharding
) -> tuple[jax.Array, ...]:
    """Lines up the views of a device's images, and parts them into batches of `rows` a device."""
    views = centre[:, None]
    if others is not None:
        views = jnp.concatenate([views, others], axis=1)
    flat = views.reshape(devices, -1, *views.shape[2:])
    passes = -(-flat.shape[1] // rows)
    flat = jnp.pad(flat, ((0, 0), (0, passes * rows - flat.shape[1]), (0, 0), (0, 0), (0, 0)))
    parts = flat.reshape(devices, passes, rows, *flat.shape[2:])
    batches = (parts[:, number].reshape(-1, *flat.shape[2:]) for number in range(passes))
    return tuple(jax.lax.with_sharding_constraint(batch, sharding) for batch in batches)


@functools.partial(jax.jit, static_argnames=("shape", "sets", "sharding"))
def _average(
    parts: tuple[jax.Array, ...],
    *,
    shape: tuple[int, int, int],
    sets: tuple[tuple[int, ...], ...],
    sharding: NamedSharding,
) -> jax.Array:
    """Undoes `_split` for its results, and averages over the views: [N, len(sets), classes].

    `shape` is devices, images of a device, views of an image.
    """
    devices, images, views = shape
    joined = jnp.stack([part.reshape(devices, -1, part.shape[-1]) for part in parts], axis=1)
    joined = joined.reshape(devices, -1, joined.shape[-1])[:, : images * views]
    joined = joined.reshape(devices * images, views, -1)
    means = [
        jax.nn.logsumexp(joined[:, np.array(chosen)], axis=1) - np.log(len(chosen))
        for chosen in sets
    ]
    return jax.lax.with_sharding_constraint(jnp.stack(means, axis=1), sharding)
