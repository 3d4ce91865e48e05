"""A trained model: a network with its weights and all that it takes to use them."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from googlenet_jax.data.image_kind import ImageKind, kind_of
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError, check_whole
from googlenet_jax.models.network import Network

if TYPE_CHECKING:
    from googlenet_jax.evaluation.ensemble import Ensemble
    from googlenet_jax.evaluation.predict import Prediction

BATCH = 32  # images, or crops, that a device takes at a time


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with its weights and all that it takes to use them, as `gj.load` returns it.

    Where a method takes images, these are a path, a `PIL.Image`, a `uint8 [H, W, 3]` array (RGB),
    or several of them: a list, or a `uint8 [N, H, W, 3]` array. A network trained on other arrays
    takes those: their channels, and the preprocessing's dtype; a path may be a .npy file of one.

    Attributes:
      variables: `params` and, with batch norm, `batch_stats`, with the source's dtypes.
      preprocessing: what the network wants of an image; None where the source doesn't say.
      class_names: one for each logit; None where they are not known.
      source: what it was loaded from, for people.
      notes: what a person should know: what was left out, initialised or supposed.
      initialised: parts that the source lacks, such as "head": their values are random.
      config, step, weights, data: of a run: its config, the steps taken, "raw" or "ema", and what
        tells its training data from others (`Source.identity`).
    """

    model: Network
    variables: dict[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    weights: str = ""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise UserError(
                f"{self.source or 'the model'}: preprocessing.class_offset: expected less than its "
                f"{self.model.num_classes} logits, found {self.class_offset}"
            )

    @property
    def class_offset(self) -> int:
        """How many logits stand before that of label 0 (TF-slim's networks: 1, the background)."""
        return self.preprocessing.class_offset if self.preprocessing else 0

    @property
    def num_classes(self) -> int:
        """The classes, without those before the offset."""
        return self.model.num_classes - self.class_offset

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes, without those before the offset; None where not known."""
        return None if self.class_names is None else self.class_names[self.class_offset :]

    @property
    def images(self) -> ImageKind:
        """Which images the network takes."""
        return kind_of(self.model, self.preprocessing)

    def logits(self, images: Any) -> np.ndarray:
        """Returns the logits of the images' centre crops, `[N, num_classes]`.

        Raises:
          UserError: an image that can't be read, or a source that doesn't say how they are prepared
            or has no classifier.
        """
        self.check_complete()
        batches = self._batches(images)
        return np.concatenate([self._outputs(batch)["logits"] for batch in batches])

    def features(self, images: Any, names: Sequence[str] = ()) -> Any:
        """Returns what the network makes of the images' centre crops below its classifier.

        Args:
          names: endpoints, as `gj.endpoints` names them.
        Returns:
          `[N, C]`, what the classifier reads; with `names` a dictionary, name → `[N, H, W, C]` or
          `[N, C]`.
        Raises:
          UserError: as `logits`, but for the classifier; or a name that the network has not.
        """
        asked = tuple(names) or ("features",)
        parts = [self._outputs(batch, asked) for batch in self._batches(images)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in asked}
        return joined if names else joined["features"]

    def crops(self, images: Any) -> np.ndarray:
        """Returns the images' centre crops, which is what the network sees of them,
        `[N, S, S, C]`.

        Raises:
          UserError: an image that can't be read, or a source that doesn't say how they are
            prepared.
        """
        return np.concatenate(list(self._batches(images)))

    def predict(self, images: Any, top: int = 5, crops: int = 1) -> list[list["Prediction"]]:
        """Returns each image's `top` most probable classes, (name, probability), the first most.

        Args:
          crops: 1, 10 or 144, whose probabilities are averaged.
        Raises:
          UserError: as `logits`.
        """
        from googlenet_jax.evaluation.predict import as_pictures, predict_pictures

        top, pictures = check_whole("top", top, 1), as_pictures(images, self.images)
        results = predict_pictures(self._ensemble(crops, len(pictures)), pictures, top=top)
        found = []
        for result in results:
            if result.error is not None:
                raise result.error
            found.append(result.predictions)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a weight file, whole or not at all: .safetensors holds all of it; .pth and
        .weights.h5, PyTorch's and Keras's, hold the weights alone.

        Raises:
          UserError: an ending or a network that can't be written, or a place that refuses.
        """
        from googlenet_jax.weights.convert import write_weights

        write_weights(path, self)

    def check_complete(self) -> None:
        """Raises UserError where the source has no classifier, or lacks the preprocessing."""
        self._check_preprocessing()
        if "head" in self.initialised:
            raise UserError(
                f"{self.source}: has no classifier, and the one that was initialised knows nothing;"
                " fine-tune it first (config.init_from), or use its features"
            )

    def _check_preprocessing(self) -> Preprocessing:
        if self.preprocessing is None:
            raise UserError(
                f"{self.source}: doesn't say how images are prepared for it; save it anew with "
                "save_weights(…, preprocessing=…), or convert it with --preprocessing"
            )
        return self.preprocessing

    def _batches(self, images: Any) -> list[np.ndarray]:
        """The images as the network's centre crops, [at most BATCH, S, S, C] each."""
        from googlenet_jax.data.pipeline import eval_image
        from googlenet_jax.evaluation.predict import as_pictures, read

        preprocessing = self._check_preprocessing()
        pictures = as_pictures(images, self.images)
        crops = [eval_image(read(each, self.images), preprocessing) for each in pictures]
        if not crops:
            raise UserError("images: expected at least one, found none")
        shape = (preprocessing.size, preprocessing.size, self.images.channels)
        crops = [np.broadcast_to(crop, shape) for crop in crops]  # grey: its channel is repeated
        return [np.stack(crops[first : first + BATCH]) for first in range(0, len(crops), BATCH)]

    def _outputs(self, images: np.ndarray, names: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """A batch's endpoints; without names its "logits", which every network gives."""
        found = self._apply(self.variables, images, names)
        return {name: np.asarray(value) for name, value in found.items()}

    @functools.cached_property
    def _apply(self) -> Any:
        import jax

        from googlenet_jax.models.endpoints import endpoints

        def outputs(variables: Any, images: jax.Array, names: tuple[str, ...]) -> Any:
            inputs = normalize(images, self._check_preprocessing(), self.model.dtype)
            if not names:
                return {"logits": self.model.apply(variables, inputs, train=False).logits}  # type: ignore[union-attr]
            return endpoints(self.model, variables, inputs, names)

        return jax.jit(outputs, static_argnums=2)

    def _ensemble(self, crops: int, images: int) -> "Ensemble":
        """This model alone; kept, as each compiles functions of its own."""
        from googlenet_jax.evaluation.ensemble import Ensemble
        from googlenet_jax.runtime.sharding import create_mesh

        kept: dict[tuple[int, int], Any] = self.__dict__.setdefault("_ensembles", {})
        at_most = min(images, BATCH)
        if (crops, at_most) not in kept:
            mesh = create_mesh()
            kept[crops, at_most] = Ensemble(
                [self], crops=crops, batch_size=BATCH, mesh=mesh, images_at_most=at_most
            )
        return kept[crops, at_most]
