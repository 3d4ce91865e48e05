"""The largest curvature of the loss, by power iteration on Hessian-vector products (forward over
reverse).

python examples/hessian_vector_product.py
"""

import jax
import jax.numpy as jnp
import optax

import googlenet_jax as gj


def main(steps: int = 5, **options: object) -> list[float]:
    """Prints and returns the curvature along the direction after each step."""
    model = gj.create_model(
        "googlenet_bn", **{"num_classes": 10, "width": 0.125, "stem": "small"} | options
    )
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    labels = jnp.arange(8) % 10
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = jax.jit(model.init, static_argnames="train")(keys, images, train=False)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        output, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs=keys
        )
        return optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()

    @jax.jit
    def step(direction):
        norm = optax.tree.norm(direction)
        unit = jax.tree.map(lambda v: v / norm, direction)
        _, product = jax.jvp(jax.grad(loss), (params,), (unit,))
        return product, optax.tree.vdot(unit, product)

    direction, found = jax.grad(loss)(params), []
    for _ in range(steps):
        direction, curvature = step(direction)
        found.append(float(curvature))
        print(f"curvature {found[-1]:.4f}")
    return found


if __name__ == "__main__":
    main()
