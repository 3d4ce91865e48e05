"""A format's names and layouts for one network, and the conversion that follows from them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from googlenet_jax.models.network import Network
from googlenet_jax.weights.folded import unfold
from googlenet_jax.weights.tree import (
    Path,
    channels_of,
    check_array,
    check_names,
    expected_shapes,
    outputs_first,
    relaid,
)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How one kind of file holds one network.

    Attributes:
      layers: our layer → the file's name of it, in the file's order where that matters.
      entry: (the file's layer, our entry such as "bn/mean", whether the layer is fully connected) →
        the file's name of the entry.
      preprocessing: what the public weights of this kind were trained with: the fields that differ
        from `Preprocessing`'s defaults.
      oihw: whether kernels are [out, in, height, width] (Caffe) in place of TensorFlow's [height,
        width, in, out].
      dense_is_conv: whether fully connected layers are kept as 1×1 convolutions, [1, 1, in, out].
      logits: the file's entry whose last axis (the first, with `oihw`) counts the classes.
    """

    layers: Mapping[str, str]
    entry: Callable[[str, str, bool], str]
    preprocessing: Mapping[str, Any]
    logits: str
    oihw: bool = False
    dense_is_conv: bool = False

    def names(self, model: Network) -> dict[Path, str]:
        """Returns the file's name for every parameter and statistic of the model, in the table's
        order.
        """
        shapes = expected_shapes(model)
        inner = {path: "/".join(path[1:]) for path in shapes}
        named = {}
        for layer, theirs in self.layers.items():
            own = [path for path in shapes if inner[path].startswith(layer + "/")]
            dense = any(len(shapes[path]) == 2 for path in own)
            separable = any(path[-1] == "depthwise_kernel" for path in own)
            for path in own:
                entry = inner[path].removeprefix(layer + "/")
                named[path] = self.entry(
                    theirs, "pointwise_kernel" if separable and entry == "kernel" else entry, dense
                )
        return named

    def has_aux(self, found: Iterable[str]) -> bool:
        """Whether a file with these entries holds auxiliary heads."""
        return any(name.startswith(self._aux_layers()) for name in found)

    def _aux_layers(self) -> tuple[str, ...]:
        return tuple(f"{theirs}/" for ours, theirs in self.layers.items() if ours.startswith("aux"))

    def num_classes(self, tensors: Mapping[str, np.ndarray]) -> int | None:
        """Returns how many classes the file's classifier has; None where it has none."""
        logits = tensors.get(self.logits)
        return None if logits is None or not logits.ndim else int(logits.shape[-1])

    def to_variables(
        self, source: str, model: Network, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], int]:
        """Turns a file's tensors into the model's variables.

        Returns:
          The variables, and how many batch norms were folded in the file.
        Raises:
          UserError: where names or shapes are not the model's.
        """
        shapes, names = expected_shapes(model), self.names(model)
        tensors, folded = unfold(
            model,
            names,
            lambda unit: self.entry(self.layers["/".join(unit)], "bias", False),
            tensors,
        )
        given = [n for n in tensors if n in names.values() or not n.startswith(self._aux_layers())]
        check_names(source, model, given, names.values())
        variables = {}
        for path, name in names.items():
            theirs = self._shape(path, shapes[path])
            array = tensors[name]
            # Caffe's older files give every blob four axes: [1, 1, out, in], [1, 1, 1, out].
            squeezed = (
                array.reshape(array.shape[array.ndim - len(theirs) :])
                if self._is_padded(array, theirs)
                else array
            )
            check_array(source, model, name, array, squeezed.shape == theirs, theirs)
            variables[path] = (
                relaid(squeezed, channels_of(shapes, path), to_ours=True)
                if self.oihw
                else np.array(squeezed.reshape(shapes[path]), order="C")
            )
        return traverse_util.unflatten_dict(variables), folded

    def _is_padded(self, array: np.ndarray, theirs: tuple[int, ...]) -> bool:
        extra = array.ndim - len(theirs)
        return self.oihw and extra > 0 and set(array.shape[:extra]) == {1}

    def _shape(self, path: Path, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the file has for an entry of ours."""
        if self.oihw:
            return outputs_first(ours)
        if path[-1] == "depthwise_kernel":  # of the stem: [height, width, RGB, multiplier]
            return (*ours[:2], 3, ours[-1] // 3)
        return (1, 1, *ours) if self.dense_is_conv and len(ours) == 2 else ours
