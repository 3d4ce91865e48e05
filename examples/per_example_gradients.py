"""Each example's own gradient, clipped before the mean, as differentially private training wants it
(arXiv:1607.00133).

python examples/per_example_gradients.py
"""

import jax
import jax.numpy as jnp
import optax

import googlenet_jax as gj


def main(limit: float = 1.0, **options: object) -> jax.Array:
    """Prints and returns the norm of each example's gradient, [N]."""
    model = gj.create_model(
        "googlenet_plain", **{"num_classes": 10, "width": 0.125, "stem": "small"} | options
    )
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    labels = jnp.arange(4) % 10
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(1), images, train=False)

    def loss(params, image, label):
        logits = model.apply({"params": params}, image[None], train=False).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[None]).mean()

    @jax.jit
    def clipped(params, images, labels):
        gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, images, labels)
        norms = jax.vmap(optax.tree.norm)(gradients)
        factors = jnp.minimum(1.0, limit / norms)
        mean = jax.tree.map(lambda g: jnp.tensordot(factors, g, 1) / len(factors), gradients)
        return norms, optax.tree.norm(mean)

    norms, length = clipped(variables["params"], images, labels)
    print("norms", norms, "of the mean after clipping", length)
    return norms


if __name__ == "__main__":
    main()
