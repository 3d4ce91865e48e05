"""`googlenet_bn` as one would write it with flax.linen's own layers: the peer of `train_speed.py`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, projection.
MODULES = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}


class Unit(nn.Module):
    features: int
    window: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size, pad = (self.window, self.window), [(self.window // 2, self.window // 2)] * 2
        x = nn.Conv(
            self.features,
            size,
            self.stride,
            pad,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
        )(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-2)(x))


def pool(x: jax.Array, stride: int) -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))


class Module(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        one, reduce_3, three, reduce_5, five, projection = self.widths
        branches = [
            Unit(one)(x, train),
            Unit(three, 3)(Unit(reduce_3)(x, train), train),
            Unit(five, 5)(Unit(reduce_5)(x, train), train),
            Unit(projection)(pool(x, 1), train),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxHead(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # PyTorch's adaptive windows on the 14×14 map of a 224×224 image.
        edges = [(0, 4), (3, 7), (7, 11), (10, 14)]
        x = jnp.stack(
            [jnp.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges], 1) for a, b in edges], 1
        )
        x = nn.Dropout(0.4, deterministic=not train)(Unit(128)(x, train))
        x = nn.relu(nn.Dense(1024)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(nn.Dropout(0.4, deterministic=not train)(x))


class PlainGoogLeNetBN(nn.Module):
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """`[N, 224, 224, 3]` → the logits of the main head and of both auxiliary ones."""
        x = pool(Unit(64, 7, 2)(x, train), 2)
        x = pool(Unit(192, 3)(Unit(64)(x, train), train), 2)
        aux = []
        for name, widths in MODULES.items():
            if name in ("inception_4a", "inception_5a"):
                x = pool(x, 2)
            x = Module(widths)(x, train)
            if name in ("inception_4a", "inception_4d"):
                aux.append(AuxHead(self.num_classes)(x, train))
        x = nn.Dropout(0.4, deterministic=not train)(x.mean((1, 2)))
        return [nn.Dense(self.num_classes)(x), *aux]
