"""Compiled functions shared within the process: a second run of the same shapes compiles nothing."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

KEPT = 32  # executables
_executables: OrderedDict[Hashable, Any] = OrderedDict()


class Shared:
    """A jitted function whose executables are also those of every other one in this process that
    lowers to the same program for the same devices, such as the next run's of a sweep over seeds.

    Called as the function is; `lower`, `eval_shape` and the like are the function's own.
    """

    def __init__(self, jitted: Any) -> None:
        self._jitted = jitted
        self._by_shapes: dict[Hashable, Callable[..., Any]] = {}
        self._last: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._last is not None:
            with contextlib.suppress(
                TypeError
            ):  # of other shapes; it is raised before anything runs
                return self._last(*args)
        leaves, tree = jax.tree.flatten(args)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):  # inside another function
            return self._jitted(*args)
        shapes = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in self._by_shapes:
            self._by_shapes[shapes] = _compile(self._jitted, args, leaves)
        self._last = self._by_shapes[shapes]
        return self._last(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


def _compile(jitted: Any, args: Any, leaves: list[Any]) -> Callable[..., Any]:
    lowered = jitted.lower(*args)
    devices = sorted({device.id for leaf in leaves for device in getattr(leaf, "devices", set)()})
    trees = str(jax.tree.structure(args)), str(jax.tree.structure(lowered.out_info))
    program = hashlib.sha256(lowered.as_text().encode()).digest()
    key = program, trees, tuple(devices)
    if key not in _executables:
        _executables[key] = lowered.compile()
        while len(_executables) > KEPT:
            _executables.popitem(last=False)
    _executables.move_to_end(key)
    return _executables[key]
