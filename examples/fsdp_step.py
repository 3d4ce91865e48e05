"""A training step by hand in `jax.shard_map`: each device holds a part of every parameter and of
the batch.

Parameters are gathered where they are used; the transpose of gathering sums their gradients and
leaves each device its part. Batch norm's statistics are those of the whole batch, by
`bn_axis_name`.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python examples/fsdp_step.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import googlenet_jax as gj


def main(**options: object) -> tuple[float, float]:
    """Prints and returns the loss before and after a step of SGD."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    model = gj.create_model(
        "googlenet_bn",
        **{"num_classes": 10, "width": 0.125, "stem": "small", "aux_heads": False, "dropout": 0.0}
        | options,
        bn_axis_name="data",
    )
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    labels = jnp.arange(8) % 10
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(1), images, train=False)
    params, stats = variables["params"], variables["batch_stats"]

    def axis(value):
        """The first axis that the devices divide evenly, or None: those parameters lie whole on
        each.
        """
        return next((i for i, n in enumerate(value.shape) if n % mesh.size == 0), None)

    axes = jax.tree.map(lambda v: -1 if axis(v) is None else axis(v), params)
    specs = jax.tree.map(lambda i: P(*[None] * i, "data") if i >= 0 else P(), axes)

    def loss(params, stats, images, labels):
        def gather(value, axis):
            return value if axis < 0 else lax.all_gather(value, "data", axis=axis, tiled=True)

        whole = jax.tree.map(gather, params, axes)
        output, updated = model.apply(
            {"params": whole, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
        return lax.pmean(losses.mean(), "data"), updated["batch_stats"]

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(specs, P(), P("data"), P("data")),
        out_specs=(specs, P(), P()),
    )
    def step(params, stats, images, labels):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, stats, images, labels
        )
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, gradients), stats, value

    found = []
    for _ in range(2):
        params, stats, value = step(params, stats, images, labels)
        found.append(float(value))
    print(f"{mesh.size} devices: loss {found[0]:.4f} → {found[1]:.4f}")
    return found[0], found[1]


if __name__ == "__main__":
    main()
