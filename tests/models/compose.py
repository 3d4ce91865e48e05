"""JAX's transformations of a scalar function of parameters and images, for the tests to lay beside
each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Loss = Callable[[Any, jax.Array], jax.Array]

# Compiled without optimisation: each of these programs runs once.
jit = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})  # noqa: E731


def dot(a: Any, b: Any) -> jax.Array:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def direction(params: Any) -> Any:
    """A fixed tangent of the parameters."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape) * 0.1, v.dtype), params)


def pairs(x: jax.Array) -> jax.Array:
    """`[N, …]` → `[N/2, 2, …]`: each element is a batch."""
    return x.reshape(-1, 2, *x.shape[1:])


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:2]), ("data",))


def shard(f: Callable, outputs: P, check_vma: bool = True) -> Callable:
    """f(parameters, part of the images) on every device."""
    specs = {"in_specs": (P(), P("data")), "out_specs": outputs}
    return jax.shard_map(f, mesh=mesh(), check_vma=check_vma, **specs)


def hvp(f: Loss, p: Any, x: jax.Array) -> Any:
    return jax.jvp(lambda p: jax.grad(f)(p, x), (p,), (direction(p),))


def step(f: Loss, p: Any, x: jax.Array) -> Any:
    return jax.tree.map(lambda v, g: v - 0.01 * g, p, jax.grad(f)(p, x))


def scanned(f: Loss, p: Any, x: jax.Array) -> Any:
    return lax.scan(lambda p, _: (step(f, p, x), f(p, x)), p, None, 2)


def through_scan(f: Loss, p: Any, x: jax.Array) -> Any:
    return lax.scan(lambda total, x: (total + f(p, x), None), 0.0 * f(p, x), jnp.stack([x, 2 * x]))[
        0
    ]


def of_sharded(f: Loss, p: Any, x: jax.Array) -> Any:
    losses = shard(lambda p, x: f(p, x)[None], P("data"))
    return jax.grad(lambda p, x: losses(p, x).sum(), (0, 1))(p, x)


def some(p: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The smallest parameter, and the function that puts another in its place."""
    leaves, tree = jax.tree.flatten(p)
    i = min(range(len(leaves)), key=lambda i: leaves[i].size)
    return leaves[i], lambda v: jax.tree.unflatten(tree, [*leaves[:i], v, *leaves[i + 1 :]])


def hessian(f: Loss, p: Any, x: jax.Array) -> Any:
    leaf, put = some(p)
    return jax.hessian(lambda v: f(put(v), x))(leaf)


def on_a_mesh(f: Loss, p: Any, x: jax.Array) -> Any:
    x = jax.device_put(x, NamedSharding(mesh(), P("data")))
    return jit(jax.grad(f))(p, x)


def exported(f: Loss, p: Any, x: jax.Array) -> Any:
    return jax.export.export(jax.jit(jax.grad(f)))(p, x).call(p, x)


def checked(f: Loss, p: Any, x: jax.Array) -> Any:
    from jax.experimental import checkify

    error, found = jit(checkify.checkify(jax.grad(f), errors=checkify.float_checks))(p, x)
    error.throw()
    return found


def _with(setting: Any) -> Callable[..., Any]:
    def run(f: Loss, p: Any, x: jax.Array) -> Any:
        with setting():
            return jit(jax.grad(f))(p, x)

    return run


JITTED: dict[str, Callable[[Loss, Any, jax.Array], Any]] = {
    "value": lambda f, p, x: f(p, x),
    "grad": lambda f, p, x: jax.grad(f, (0, 1))(p, x),
    "grad of grad": lambda f, p, x: jax.grad(lambda p: dot(jax.grad(f)(p, x), direction(p)))(p),
    "jvp": lambda f, p, x: jax.jvp(lambda p: f(p, x), (p,), (direction(p),)),
    "linearize": lambda f, p, x: jax.linearize(lambda p: f(p, x), p)[1](direction(p)),
    "hvp": hvp,
    "grad of jvp": lambda f, p, x: jax.grad(
        lambda p: jax.jvp(lambda p: f(p, x), (p,), (direction(p),))[1]
    )(p),
    "hessian": hessian,
    "vmap": lambda f, p, x: jax.vmap(f, (None, 0))(p, pairs(x)),
    "vmap of grad": lambda f, p, x: jax.vmap(jax.grad(f), (None, 0))(p, pairs(x)),
    "grad of vmap": lambda f, p, x: jax.grad(
        lambda p: jnp.sin(jax.vmap(f, (None, 0))(p, pairs(x))).sum()
    )(p),
    "vmap over parameters": lambda f, p, x: jax.vmap(jax.grad(f), (0, None))(
        jax.tree.map(lambda v: jnp.stack([v, 1.1 * v]), p), x
    ),
    "remat": lambda f, p, x: jax.grad(jax.checkpoint(f))(p, x),
    "scan over steps": scanned,
    "grad of scan": lambda f, p, x: jax.grad(lambda p: through_scan(f, p, x))(p),
    "shard_map": lambda f, p, x: shard(lambda p, x: lax.psum(f(p, x), "data"), P())(p, x),
    "grad of shard_map": of_sharded,
    "grad inside shard_map": lambda f, p, x: shard(
        jax.grad(lambda p, x: lax.psum(f(p, x), "data")), P()
    )(p, x),
    "hvp inside shard_map": lambda f, p, x: shard(
        lambda p, x: hvp(lambda p, x: lax.psum(f(p, x), "data"), p, x), P()
    )(p, x),
    "shard_map without check_vma": lambda f, p, x: shard(
        lambda p, x: lax.psum(jax.grad(f)(p, x), "data"), P(), check_vma=False
    )(p, x),
}
AS_IT_IS = {
    "op by op": lambda f, p, x: jax.grad(f)(p, x),
    "pmap": lambda f, p, x: jax.pmap(jax.grad(f), in_axes=(None, 0))(p, x[None]),
    "a mesh": on_a_mesh,
    "export": exported,
    "checkify": checked,
    "leak checking": _with(jax.checking_leaks),
    "debug_nans": _with(lambda: jax.debug_nans(True)),
    "rank promotion": _with(lambda: jax.numpy_rank_promotion("raise")),
}


def transform(name: str, f: Loss, p: Any, x: jax.Array) -> list[np.ndarray]:
    """The leaves of what the transformation gives."""
    run = AS_IT_IS.get(name) or (lambda f, p, x: jit(lambda p, x: JITTED[name](f, p, x))(p, x))
    found = run(f, p, x)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
