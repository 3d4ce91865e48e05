"""What a network consists of, by layer: output size, depth, parameters and multiply-adds, counted
from the traced computation.

Nothing is computed: the network is traced on shapes alone. A convolution or matrix product counts
where one side derives from parameters and the other from the images, so that average pooling
written as a product does not; it belongs to the layer whose name flax put on it.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network, variable_shapes


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer or module, for one image.

    Attributes:
      output: (H, W, C), or (C,) where there is no map.
      depth: layers with weights on the longest path through it.
      parameters: all entries of `params`; weights: those of kernels alone, as the papers count.
      multiply_adds: of products with weights; every output position counts the whole kernel, also
        where it reaches into the padding.
      aux: whether it is an auxiliary head.
    """

    name: str
    output: tuple[int, ...]
    depth: int
    parameters: int
    weights: int
    multiply_adds: int
    aux: bool


@dataclasses.dataclass(frozen=True)
class Summary:
    """A network's rows from the image to the logits: the trunk, then the auxiliary heads, then the
    classifier.
    """

    rows: tuple[Row, ...]

    @property
    def depth(self) -> int:
        """Layers with weights from the image to the main logits, as the paper counts: 22 for
        GoogLeNet.
        """
        return sum(row.depth for row in self.rows if not row.aux)

    def row(self, name: str) -> Row | None:
        """The row of that name, None where there is none."""
        return next((row for row in self.rows if row.name == name), None)

    def totals(self, aux: bool) -> dict[str, int]:
        """Sums of parameters, weights and multiply-adds, with or without the auxiliary heads."""
        rows = [row for row in self.rows if aux or not row.aux]
        return {
            field: sum(getattr(row, field) for row in rows)
            for field in ("parameters", "weights", "multiply_adds")
        }


def summarize(model: Network, input_size: int = 224) -> Summary:
    """Traces `model` on one image of `input_size` × `input_size` × 3.

    Raises:
      UserError: the model can't take images of `input_size`.
    """
    if problem := model.size_problem(input_size, input_size, aux=model.aux_heads):
        raise UserError(f"input size: {problem}")
    images = jax.ShapeDtypeStruct((1, input_size, input_size, 3), jnp.float32)
    variables = variable_shapes(model, input_size)
    params, rest = (
        variables["params"],
        {name: tree for name, tree in variables.items() if name != "params"},
    )
    endpoint_order: list[str] = []

    def forward(params: Any, rest: Any, images: Any) -> Any:
        output, sown = model.apply(
            {"params": params, **rest}, images, train=False, aux=True, mutable=["intermediates"]
        )
        endpoint_order.extend(sown["intermediates"])  # the returned tree has its keys sorted
        return output.logits, output.aux_logits, sown["intermediates"]

    traced, (logits, aux_logits, endpoints) = jax.make_jaxpr(forward, return_shape=True)(
        params, rest, images
    )
    trunk = [name for name in endpoint_order if name not in aux_logits]
    names = [*trunk, *sorted(aux_logits), *(name for name in params if name not in endpoint_order)]
    origins = [
        *[_Origin(params=True) for _ in jax.tree.leaves(params)],
        *[_Origin() for _ in jax.tree.leaves(rest)],
        _Origin(images=True),
    ]
    counter = _Counter(names)
    counter.walk(traced.jaxpr, origins)

    def output_of(name: str) -> tuple[int, ...]:
        value = endpoints.get(name, logits)
        while isinstance(value, Mapping):  # of a module that sows no output, its last layer's
            value = value.get("output", list(value.values())[-1])
        return tuple(value.shape[1:])

    rows = (
        Row(
            name=name,
            output=output_of(name),
            depth=counter.depth[name],
            parameters=sum(_sizes(params.get(name, {})).values()),
            weights=sum(
                size
                for path, size in _sizes(params.get(name, {})).items()
                if path.endswith("kernel']")
            ),
            multiply_adds=counter.multiply_adds[name],
            aux=name in aux_logits,
        )
        for name in names
    )
    return Summary(tuple(rows))


def _sizes(tree: Any) -> dict[str, int]:
    return {
        jax.tree_util.keystr(path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a value derives from, and the most products with weights on a path to it, by layer."""

    images: bool = False
    params: bool = False
    depth: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _merge(origins: Iterable[_Origin]) -> _Origin:
    origins = list(origins)
    depth: dict[str, int] = {}
    for origin in origins:
        for name, count in origin.depth.items():
            depth[name] = max(count, depth.get(name, 0))
    return _Origin(any(o.images for o in origins), any(o.params for o in origins), depth)


class _Counter:
    """Walks a traced computation, adding up multiply-adds and depth by layer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.multiply_adds: collections.Counter[str] = collections.Counter()
        self.depth: collections.Counter[str] = collections.Counter()

    def walk(self, jaxpr: core.Jaxpr, origins: Sequence[_Origin], scope: str = "") -> list[_Origin]:
        """Takes the origins of the inputs, returns those of the outputs."""
        known = dict(zip(jaxpr.invars, origins, strict=True))

        def origin_of(atom: Any) -> _Origin:
            return _Origin() if isinstance(atom, core.Literal) else known.get(atom, _Origin())

        for eqn in jaxpr.eqns:
            outputs = self._equation(
                eqn,
                [origin_of(atom) for atom in eqn.invars],
                f"{scope}/{eqn.source_info.name_stack}",
            )
            known.update(zip(eqn.outvars, outputs, strict=True))
        return [origin_of(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: core.JaxprEqn, inputs: list[_Origin], scope: str) -> list[_Origin]:
        primitive = eqn.primitive.name
        if primitive in ("scan", "while"):
            raise NotImplementedError(f"multiply-adds inside {primitive!r} ({scope})")
        if primitive == "cond":  # the platforms' forms of one thing, the plain one last
            return self.walk(eqn.params["branches"][-1].jaxpr, inputs[1:], scope)
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None:
            return self.walk(getattr(inner, "jaxpr", inner), inputs, scope)
        if primitive == "optimization_barrier":
            return inputs
        merged = _merge(inputs)
        if primitive in _MULTIPLY_ADDS and _product_with_weights(inputs):
            name = next(part for part in scope.split("/") if part in self.names)
            self.multiply_adds[name] += _MULTIPLY_ADDS[primitive](eqn)
            depth = merged.depth.get(name, 0) + 1
            self.depth[name] = max(self.depth[name], depth)
            merged = dataclasses.replace(merged, depth={**merged.depth, name: depth})
        return [merged] * len(eqn.outvars)


def _product_with_weights(inputs: Sequence[_Origin]) -> bool:
    one, other = inputs
    return any(a.params and not a.images and b.images for a, b in ((one, other), (other, one)))


def _convolution(eqn: Any) -> int:
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    return eqn.outvars[0].aval.size * math.prod(kernel) // kernel[spec[0]]


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return eqn.outvars[0].aval.size * math.prod(
        eqn.invars[0].aval.shape[axis] for axis in contracted
    )


_MULTIPLY_ADDS = {"conv_general_dilated": _convolution, "dot_general": _dot}
