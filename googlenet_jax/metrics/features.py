"""The network of the Fréchet Inception distance, as a function of images."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.metrics.resize import INPUT, check_resize, normalize, resize
from googlenet_jax.models.endpoints import endpoints
from googlenet_jax.models.folding import fold_batch_norm
from googlenet_jax.models.network import Network
from googlenet_jax.runtime.sharding import replicate
from googlenet_jax.weights.load import load

Array = jax.Array
Features = Callable[[Array], Array]

# What the metrics take of the network. "logits" are without the classifier's bias, as the
# reference of the Inception score computes them; "spatial" is sFID's, 17×17×7 values.
LAYERS = ("pool3", "logits", "spatial")
WIDTHS = {"pool3": 2048, "logits": 1008, "spatial": 2023}
_SPATIAL_CHANNELS = 7


@flax.struct.dataclass
class InceptionFeatures:
    """Inception-v3's features of images; a pytree, so that its weights pass through jit.

    `features(images)` gives [N, 2048]; `features.layers(images, names)` what several metrics need,
    in one pass. Images are uint8 [N, H, W, 3], or floats in units of 0–255, of any size: they are
    resized on the device. It always runs in evaluation.
    """

    variables: dict[str, Any]
    model: Network = flax.struct.field(pytree_node=False)
    resize: str = flax.struct.field(pytree_node=False, default="tf1")
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, images: Array) -> Array:
        """pool3, float32 [N, 2048]."""
        return self.layers(images, ("pool3",))["pool3"]

    def layers(self, images: Array, names: Iterable[str] = LAYERS) -> dict[str, Array]:
        """Those of LAYERS that are named, each [N, D]. All come of one pass, at no cost each."""
        names = tuple(names)
        for name in names:
            if name not in LAYERS:
                raise UserError(
                    f"layer: expected one of {', '.join(LAYERS)}, found"
                    f" {name!r}{nearest(name, LAYERS)}"
                )
        values = _layers(self, jnp.asarray(images))
        return {name: values[name] for name in names}


def inception_features(
    model: Network | None = None,
    variables: dict[str, Any] | None = None,
    resize: str = "tf1",
    mesh: Mesh | None = None,
) -> InceptionFeatures:
    """The features that the metrics are defined by.

    Args:
      model, variables: inception_v3 of flavour "fid" with its weights; by default the public ones.
      resize: "tf1", "torch" or "clean"; see `resize.RESIZES`.
      mesh: the devices over which images are split, where there are several: the weights are whole
        on each, and the metrics' sums are split over them.
    Raises:
      UserError: another network, or the public weights can't be had.
    """
    check_resize(resize)
    if model is None or variables is None:
        trained = load("inception_v3_fid")
        model, variables = trained.model, trained.variables
    if getattr(model, "flavour", None) != "fid":
        raise UserError(
            "features: expected inception_v3 of flavour 'fid', found "
            f"{type(model).__name__} {getattr(model, 'flavour', '')}: its distances would compare "
            "with nobody's; other networks go in as a function of images"
        )
    if not model.bn_folded:  # type: ignore[attr-defined]
        model, variables = fold_batch_norm(model, variables)
    variables = jax.tree.map(jnp.asarray, variables) if mesh is None else replicate(variables, mesh)
    return InceptionFeatures(variables, model, resize, mesh)


@jax.jit
def _layers(features: InceptionFeatures, images: Array) -> dict[str, Array]:
    model, variables = features.model, features.variables
    x = normalize(resize(images, features.resize, INPUT), features.resize).astype(model.dtype)
    named = endpoints(model, variables, x)
    pool3 = named["pool3"].reshape(len(images), -1)
    kernel = variables["params"]["head"]["kernel"].astype(pool3.dtype)
    spatial = named["inception_6d"][..., :_SPATIAL_CHANNELS]
    return {
        "pool3": pool3,
        "logits": jnp.matmul(pool3, kernel, precision="highest"),
        "spatial": spatial.reshape(len(images), -1),
    }


def widths(features: Any) -> dict[str, int]:
    """How many values each of LAYERS has for these features' network."""
    if not isinstance(features, InceptionFeatures):
        return WIDTHS
    shape = jax.ShapeDtypeStruct((1, INPUT, INPUT, 3), jnp.uint8)
    found = jax.eval_shape(_layers, features, shape)
    return {name: value.shape[1] for name, value in found.items()}


def check_function(features: Features, images: Array) -> None:
    """Raises UserError where a function of a user's gives no [N, D], or lets an image's features
    depend on the images beside it, as a network does that runs in training mode.
    """
    values = features(images)
    if (
        isinstance(values, tuple | dict)
        or getattr(values, "ndim", 0) != 2
        or len(values) != len(images)
    ):
        found = list(values.shape) if hasattr(values, "shape") else type(values).__name__
        raise UserError(
            f"features: expected a function of images that returns [N, D], found {found}; a network"
            " that returns a pair runs with mutable=…, in training mode"
        )
    if len(images) < 2:
        return
    alone = features(jnp.broadcast_to(images[:1], images.shape))
    first, other = np.asarray(values[0], np.float64), np.asarray(alone[0], np.float64)
    if np.abs(first - other).max() > 1e-2 * max(np.abs(first).max(), 1e-30):
        raise UserError(
            "features: an image's features depend on the images beside it: the network runs in "
            "training mode; give it train=False"
        )
