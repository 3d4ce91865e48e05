"""Operations with a backward pass of their own that compose with JAX's transformations.

`jax.custom_vjp` forbids forward mode, and under `jax.shard_map` it leaves the types of cotangents
to the user. Here the forward pass is a `jax.custom_jvp`, whose tangent is one primitive: linear, as
JAX sees it, and transposed by the operation's backward pass. What is neither the operation itself
nor that transposition (forward mode, derivatives of derivatives, batching of tangents) goes by the
tangent's own formula, which is made of JAX's operations.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array
Arrays = Sequence[Array]


@dataclasses.dataclass(frozen=True)
class Operation:
    """A differentiable function of arrays with a backward pass of its own. Calling it returns a
    tuple.

    Attributes:
      forward: `(*args, **settings)` → the outputs, a tuple of floats.
      saved: `(args, outputs, **settings)` → what tangents and the backward pass need, a tuple.
      tangent: `(saved, tangents, **settings)` → the outputs' tangents, a tuple; linear in
        `tangents`, one for each argument.
      backward: `(saved, cotangents, **settings)` → the arguments' cotangents. It is the tangent's
        transpose; among `cotangents`, one for each output, `None` stands for what nothing depends
        on.
    """

    forward: Callable[..., tuple[Array, ...]]
    saved: Callable[..., tuple[Array, ...]]
    tangent: Callable[..., tuple[Array, ...]]
    backward: Callable[..., tuple[Array, ...]]

    def __call__(self, *args: Array, **settings: Any) -> tuple[Array, ...]:
        """The outputs. `settings` are hashable."""
        return _call(self, tuple(settings.items()), *varying(*args))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(operation: Operation, settings: tuple, *args: Array) -> tuple[Array, ...]:
    return operation.forward(*args, **dict(settings))


@_call.defjvp
def _call_jvp(operation: Operation, settings: tuple, args: Arrays, tangents: Arrays):
    outputs = _call(operation, settings, *args)
    saved = operation.saved(args, outputs, **dict(settings))
    avals = tuple(map(jax.typeof, outputs))
    found = _tangent_p.bind(
        *saved, *tangents, operation=operation, settings=settings, avals=avals, count=len(args)
    )
    return outputs, tuple(found)


# -------------------------------------------------------------------------------------- the tangent


def _tangents(*flat: Array, operation: Operation, settings: tuple, avals: tuple, count: int):
    return operation.tangent(flat[:-count], flat[-count:], **dict(settings))


def _tangents_jvp(primals: Arrays, tangents: Sequence[Any], **params: Any):
    def whole(primal: Array, tangent: Any) -> Any:
        if not isinstance(tangent, ad.Zero):
            return tangent
        floats = jnp.issubdtype(primal.dtype, jnp.floating)
        return jnp.zeros_like(primal) if floats else np.zeros(primal.shape, dtypes.float0)

    whole_tangents = tuple(map(whole, primals, tangents))
    return jax.jvp(functools.partial(_tangents, **params), tuple(primals), whole_tangents)


def _tangents_transposed(cotangents: Sequence[Any], *flat: Any, **params: Any) -> list[Any]:
    operation, count = params["operation"], params["count"]
    saved, tangents = flat[:-count], flat[-count:]
    given = [None if isinstance(c, ad.Zero) else c for c in cotangents]
    found = operation.backward(saved, given, **dict(params["settings"]))
    wanted = map(ad.is_undefined_primal, tangents)
    return [None] * len(saved) + [c if w else None for c, w in zip(found, wanted, strict=True)]


def _tangents_batched(flat: Arrays, axes: Sequence[Any], **params: Any):
    found = jax.vmap(functools.partial(_tangents, **params), tuple(axes))(*flat)
    return found, (0,) * len(found)


_tangent_p = Primitive("tangent_of_operation")
_tangent_p.multiple_results = True
_tangent_p.def_impl(_tangents)
_tangent_p.def_abstract_eval(lambda *_, avals, **__: list(avals))
ad.primitive_jvps[_tangent_p] = _tangents_jvp
ad.primitive_transposes[_tangent_p] = _tangents_transposed
batching.primitive_batchers[_tangent_p] = _tangents_batched
mlir.register_lowering(_tangent_p, mlir.lower_fun(_tangents, multiple_results=True))

# ---------------------------------------------------------------------------------------- shard_map


def varying(*args: Array) -> tuple[Array, ...]:
    """The arguments, each varying over every axis of a `shard_map` that one of them varies over.

    JAX itself then sums the cotangents of what was the same on every device.
    """
    found = [_axes(x) for x in args]
    every = frozenset().union(*found)
    return tuple(
        jax.lax.pcast(x, tuple(every - axes), to="varying") if every - axes else x
        for x, axes in zip(args, found, strict=True)
    )


def _axes(x: Array) -> frozenset:
    aval: Any = jax.typeof(x)
    manual = getattr(aval, "mat", None)  # JAX from 0.10 on
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)
