"""Patterns that name parts of the parameter tree, what stays frozen and what learns at another
rate.

"conv*" names `conv1/kernel` and all else whose path, or the beginning of it, it fits; `*` stands
for anything, `/` included.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models.layers import BatchNorm

ModulePath = tuple[str, ...]


def matches(pattern: str, path: Iterable[str]) -> bool:
    """Whether a path of the tree lies in what `pattern` names."""
    joined = "/".join(path)
    return fnmatch.fnmatchcase(joined, pattern) or fnmatch.fnmatchcase(joined, f"{pattern}/*")


def expanded(patterns: Iterable[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """The patterns, with "all_but=N" spelled out: all of the network but its last N modules
    (`inception_…`) and what follows them, its heads.

    Raises UserError where N is no number of modules that the network has.
    """
    modules = sorted(name for name in params if name.startswith("inception_"))
    found: list[str] = []
    for pattern in patterns:
        word, _, number = pattern.partition("=")
        if word != "all_but":
            found.append(pattern)
            continue
        if not number.isdigit() or not 1 <= int(number) <= len(modules):
            raise UserError(
                f"freeze: expected all_but=N, a number of modules from 1 to {len(modules)}, found "
                f"{pattern!r}"
            )
        learns = {*modules[-int(number) :], "head"}
        found += [name for name in params if name not in learns and not name.startswith("aux")]
    return tuple(found)


def check_patterns(
    field: str, patterns: Iterable[str], params: Any, must_leave: bool = False
) -> None:
    """Raises UserError for a pattern that names nothing of the parameters, or, with `must_leave`,
    for patterns that together name all.
    """
    patterns, paths = list(patterns), list(flatten_dict(params))
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            parts = sorted({path[0] for path in paths} | {"/".join(path[:-1]) for path in paths})
            raise UserError(
                f"{field}: {pattern!r} names no part of the network{nearest(pattern, parts)}"
            )
    if must_leave and all(any(matches(p, path) for p in patterns) for path in paths):
        raise UserError(
            f"{field}: {', '.join(patterns)} name the whole network: nothing would learn"
        )


# ------------------------------------------------------------------------------------------ frozen


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step leaves as it is, bit for bit.

    Attributes:
      patterns: of the parts.
      statistics: whether their batch norms keep their running statistics too, and normalize with
        these. Otherwise they go on as in any training.
    """

    patterns: tuple[str, ...] = ()
    statistics: bool = True

    def __contains__(self, path: ModulePath) -> bool:
        return any(matches(pattern, path) for pattern in self.patterns)

    def stop_gradient(self, params: Any) -> Any:
        """The parameters, those frozen as constants: what only they need is not computed."""
        return self._select(params, jax.tree.map(jax.lax.stop_gradient, params), params)

    def keep(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        """The new `params` and `batch_stats`, with the old values of what is frozen."""
        kept = {"params": self._select(new["params"], old["params"], new["params"])}
        stats = new["batch_stats"]
        return kept | {
            "batch_stats": self._select(stats, old["batch_stats"], stats)
            if self.statistics
            else stats
        }

    def _select(self, like: Any, frozen: Any, free: Any) -> Any:
        if not self.patterns:
            return free
        one, other = flatten_dict(frozen), flatten_dict(free)
        return unflatten_dict(
            {path: (one if path in self else other)[path] for path in flatten_dict(like)}
        )

    @contextmanager
    def running_statistics(self) -> Iterator[None]:
        """Inside, the frozen parts' batch norms normalize with their running statistics."""
        if not (self.patterns and self.statistics):
            yield
            return

        def intercept(
            call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
        ) -> Any:
            module = context.module
            if isinstance(module, BatchNorm) and (*module.path, "mean") in self:
                return call(args[0], True, *args[2:], **kwargs)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            yield


# ------------------------------------------------------------------------------------------- rates


def parse_multipliers(pairs: Sequence[str]) -> dict[str, float]:
    """Returns "PATTERN=FACTOR" strings as pattern → factor. Raises UserError where one is not."""
    factors = {}
    for pair in pairs:
        pattern, equals, factor = pair.rpartition("=")
        try:
            factors[pattern] = float(factor)
        except ValueError:
            equals = ""
        if not equals or not pattern or not 0 <= factors[pattern] < float("inf"):
            raise UserError(
                "optimizer.rate_multipliers: expected PATTERN=FACTOR, such as 'head=10', "
                f"found {pair!r}"
            )
    return factors


def scale_by_pattern(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of what each pattern names; where two do, by both factors."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(path: Any, leaf: jax.Array) -> jax.Array:
            names = [entry.key for entry in path]
            for pattern, factor in factors.items():
                if matches(pattern, names):
                    leaf = leaf * factor
            return leaf

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
