"""Muon: steps whose directions weigh equally (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
_QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # fastest at 0: singular values end within 0.7 and 1.2, not at 1


def orthogonalized(matrix: Array, iterations: int = 3) -> Array:
    """Returns U·Vᵀ of a matrix U·S·Vᵀ, roughly: Newton and Schulz's iteration by a quintic, which
    moves all singular values towards 1.

    Args:
      matrix: `[m, n]`, any float dtype; the smaller side is worked on. Zeros stay zeros.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def _as_matrix(kernel: Array) -> Array:
    """`[h, w, in, out]` → `[h · w · in, out]`."""
    return kernel.reshape(-1, kernel.shape[-1])


def scale_by_muon(iterations: int = 3) -> optax.GradientTransformation:
    """Puts in each kernel's update the nearest matrix whose directions weigh equally."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda u: orthogonalized(_as_matrix(u), iterations).reshape(u.shape), updates
        )
    )


def keep_norms() -> optax.GradientTransformation:
    """Brings each kernel to the norm √out before it takes its step: batch norm makes its length of
    no matter, so a rate is then the share that a step changes.
    """

    def shortened(update: Array, kernel: Array) -> Array:
        norm = jnp.linalg.norm(kernel) + 1e-7
        return update + (jnp.sqrt(kernel.shape[-1]) / norm - 1) * kernel

    return optax.stateless(lambda updates, params: jax.tree.map(shortened, updates, params))


def muon(
    learning_rate: optax.ScalarOrSchedule,
    others: optax.GradientTransformation,
    momentum: float = 0.9,
    nesterov: bool = True,
    iterations: int = 3,
) -> optax.GradientTransformation:
    """Muon on the kernels of convolutions, `others` on all other parameters.

    buffer = momentum · buffer + gradient; d = buffer, or gradient + momentum · buffer under
    Nesterov; p = p · √out / ‖p‖ − rate · UVᵀ(d), each kernel as a matrix `[h · w · in, out]`.
    """
    kernels = optax.chain(
        optax.trace(momentum, nesterov=nesterov),
        scale_by_muon(iterations),
        optax.scale_by_learning_rate(learning_rate),
        keep_norms(),
    )

    def kinds(params: Any) -> Any:
        def kind(path: Any, leaf: Any) -> str:
            return "muon" if path[-1].key == "kernel" and leaf.ndim == 4 else "others"

        return jax.tree_util.tree_map_with_path(kind, params)

    return optax.partition({"muon": kernels, "others": others}, kinds)
