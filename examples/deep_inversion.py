"""Images from a trained network alone: DeepInversion's loss (Yin et al., 2020, arXiv:1912.08795).

The gradient by the images flows through the batch's statistics, which are drawn towards the running
ones. Any network with batch norm will do; here one fresh from its initialisation.

    python examples/deep_inversion.py
"""

import jax
import jax.numpy as jnp
import optax

import googlenet_jax as gj


def main(steps: int = 20, **options: object) -> list[float]:
    """Prints and returns the loss of each step."""
    # With a momentum of 0 what training leaves in `batch_stats` is the batch's own statistics.
    model = gj.create_model(
        "googlenet_bn",
        **{
            "num_classes": 10,
            "width": 0.125,
            "stem": "small",
            "aux_heads": False,
            "bn_momentum": 0.0,
        }
        | options,
    )
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    labels = jnp.arange(8) % 10
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = jax.jit(model.init, static_argnames="train")(keys, images, train=False)
    wanted = variables["batch_stats"]

    def loss(images):
        output, updated = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=keys
        )
        classes = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()
        apart = jax.tree.map(lambda a, b: jnp.square(a - b).mean(), updated["batch_stats"], wanted)
        rough = jnp.abs(jnp.diff(images, axis=1)).mean() + jnp.abs(jnp.diff(images, axis=2)).mean()
        return classes + 0.1 * sum(jax.tree.leaves(apart)) + 1e-3 * rough

    optimizer = optax.adam(0.05)

    @jax.jit
    def step(images, state):
        value, gradient = jax.value_and_grad(loss)(images)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(images, updates), state, value

    state, found = optimizer.init(images), []
    for _ in range(steps):
        images, state, value = step(images, state)
        found.append(float(value))
    print(f"loss {found[0]:.3f} → {found[-1]:.3f}")
    return found


if __name__ == "__main__":
    main()
