"""A training loop in flax.nnx, around a network of googlenet_jax.

python examples/nnx_training.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.nnx import bridge

import googlenet_jax as gj


def main(steps: int = 5, **options: object) -> list[float]:
    """Prints and returns the loss of each step."""
    model = gj.create_model(
        "googlenet_bn", **{"num_classes": 10, "width": 0.125, "stem": "small"} | options
    )
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    labels = jnp.arange(8) % 10
    network = bridge.ToNNX(model, rngs=nnx.Rngs(0, dropout=1)).lazy_init(images, train=False)
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels):
        def loss(network):
            output = network(images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    found = [float(step(network, optimizer, images, labels)) for _ in range(steps)]
    print(f"loss {found[0]:.3f} → {found[-1]:.3f}")
    return found


if __name__ == "__main__":
    main()
