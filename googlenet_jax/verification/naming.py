"""What a rewrite is called: the fault that somebody would look for in the candidate's code."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from googlenet_jax.verification.align import NEUTRAL, Roles, Unit, roles_of
from googlenet_jax.verification.edits import Edit, pool_windows
from googlenet_jax.verification.graph import Node


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault, tested: with it in the reference, the reference does what the candidate does.

    Attributes:
      name: what it is called. layer: where; "" is everywhere. detail: with which numbers.
    """

    name: str
    layer: str
    detail: str = ""

    def __str__(self) -> str:
        where = self.layer or "every layer"
        return f"{self.name} ({where}{': ' if self.detail else ''}{self.detail})"


def names_of(
    edit: Edit, where: str, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
) -> list[Finding] | None:
    """What one edit is called; None where it is on no list.

    Args:
      where: the layer. reference, candidate: the two sides' leaves.
    """
    op = (edit.candidate or edit.reference).op if edit.kind != "set" else "conv"  # type: ignore[union-attr]
    if edit.kind in ("rewire", "splice", "set"):
        return None
    if edit.kind == "permute":
        order = ", ".join(str(i + 1) for i in edit.order)
        return [Finding("concatenation order", where, f"{order} in place of 1, 2, …")]
    if edit.kind == "keep":
        merges = {"add": "missing shortcut", "concat": "missing branch", "mul": "missing factor"}
        return [Finding(merges[edit.reference.op], where)]  # type: ignore[union-attr]
    if op == "affine" or (edit.kind == "delete" and edit.reference.op == "affine"):  # type: ignore[union-attr]
        return _affine(edit, where, reference, candidate)
    given = (edit.reference, edit.candidate) if edit.kind == "replace" else (edit.reference, None)
    if edit.kind == "insert":
        if _follows_size(edit):
            return []
        given = (None, edit.candidate)
    made = _operation(*given, where)
    return None if made is None else [made]


def _follows_size(edit: Edit) -> bool:
    """Whether an inserted pool is adaptive, to the size that the reference's map has anyway: there
    it was the identity, and the candidate's map has another size for a reason that is found
    elsewhere.
    """
    assert edit.candidate is not None and edit.below is not None
    return edit.candidate.op == "average" and all(
        edit.candidate.attrs[name].rule == ("adaptive", size)
        for name, size in zip(("rows", "columns"), edit.below.shape[1:3], strict=True)
    )


def _operation(reference: Node | None, candidate: Node | None, where: str) -> Finding | None:
    match (reference or candidate).op:  # type: ignore[union-attr]
        case "act":
            return _activation(reference, candidate, where)
        case "max_pool" | "average":
            return _pool(reference, candidate, where)
        case "lrn":
            return _lrn(reference, candidate, where)
        case "softmax" | "log_softmax":
            return _softmax(reference, candidate, where)
        case "dropout" if candidate is not None and reference is None:
            return Finding("dropout on in evaluation", where, _rate(candidate))
        case "reorder":
            return _reorder(reference, candidate, where)
        case "layout" if reference is not None and candidate is not None:
            return Finding("flattening order", where)
        case "conv":
            extra = reference is None
            return Finding("extra convolution" if extra else "missing convolution", where)
    return None


def _activation(reference: Node | None, candidate: Node | None, where: str) -> Finding | None:
    one, other = (_function(node) for node in (reference, candidate))
    if "" in (one, other):
        return None  # a function without a name
    if other is None:
        return Finding(f"missing {one}", where)
    if one is None:
        return Finding("extra activation", where, other)
    return Finding("activation", where, f"{other} in place of {one}")


def _function(node: Node | None) -> str | None:
    """An activation in words, None where there is none and "" where it has no name."""
    if node is None:
        return None
    kind, numbers = node.attrs["kind"], node.attrs["numbers"]
    if not kind:
        return ""
    return f"{kind} {', '.join(f'{n:g}' for n in numbers)}".strip()


def _pool(reference: Node | None, candidate: Node | None, where: str) -> Finding | None:
    if reference is None or candidate is None:
        return Finding("missing pool" if candidate is None else "extra pool", where)
    if reference.op != candidate.op:
        kinds = {"max_pool": "max", "average": "average"}
        name = "average for max" if reference.op == "max_pool" else "max for average"
        return Finding(
            name, where, f"{kinds[candidate.op]} pool in place of {kinds[reference.op]} pool"
        )
    if reference.op == "average":
        return _averages(reference, candidate, where)
    one, other = pool_windows(reference)[:2], pool_windows(candidate)[:2]
    if [w for w, *_ in one] != [w for w, *_ in other]:
        return Finding("pool size", where, f"{_by(other, 0)} in place of {_by(one, 0)}")
    strides = [node.attrs["stride"] for node in (candidate, reference)]
    if strides[0] != strides[1]:
        return Finding("pool stride", where, f"{strides[0][0]} in place of {strides[1][0]}")
    sides = [(b, a) for _, _, b, a in (*other, *one)]
    detail = f"{_pads(sides[0])} in place of {_pads(sides[2])}"
    ceil = all(x[2] == y[2] for x, y in zip(one, other, strict=True))
    return Finding("ceil against floor" if ceil else "padding side", where, detail)


def _by(windows: Sequence[Any], i: int) -> str:
    return "×".join(str(each[i]) for each in windows)


def _pads(pair: tuple[int, int]) -> str:
    return f"{pair[0]} before, {pair[1]} after"


def _averages(reference: Node, candidate: Node, where: str) -> Finding | None:
    one, other = reference.attrs["rows"].rule, candidate.attrs["rows"].rule
    if one[0] == other[0] == "windows" and one[1:5] == other[1:5]:
        detail = "counted" if other[5] else "not counted"
        return Finding("pooling that counts padding", where, detail)
    if "matrix" in (one[0], other[0]):
        return None
    return Finding("average pool", where, f"{_rule(other)} in place of {_rule(one)}")


def _rule(rule: tuple[Any, ...]) -> str:
    if rule[0] == "windows":
        size, stride, before, after, counted = rule[1:]
        pads = f", padded by {before} and {after}" if before or after else ""
        return f"{size}×{size}/{stride}{pads}{', counted' if counted else ''}"
    return "global" if rule[0] == "global" else f"adaptive {rule[1]}×{rule[1]}"


def _lrn(reference: Node | None, candidate: Node | None, where: str) -> Finding:
    if reference is None or candidate is None:
        return Finding("missing LRN" if candidate is None else "extra LRN", where)
    parts = [
        f"{name} {candidate.attrs[name]:g} in place of {reference.attrs[name]:g}"
        for name in ("size", "alpha", "beta", "k")
        if not np.isclose(candidate.attrs[name], reference.attrs[name])
    ]
    return Finding("LRN's numbers", where, ", ".join(parts))


def _softmax(reference: Node | None, candidate: Node | None, where: str) -> Finding:
    words = {"softmax": "softmax", "log_softmax": "log softmax"}
    if reference is None:
        return Finding(f"{words[candidate.op]} inside", where)  # type: ignore[union-attr]
    if candidate is None:
        return Finding(f"missing {words[reference.op]}", where)
    return Finding("softmax", where, f"{words[candidate.op]} in place of {words[reference.op]}")


def _rate(node: Node) -> str:
    mask = node.attrs["mask"].value
    return f"about {float((mask == 0).double().mean()):.0%} of the values are zero"


def _reorder(reference: Node | None, candidate: Node | None, where: str) -> Finding | None:
    if candidate is None:
        return Finding("channel order", where, "as they come")
    index = candidate.attrs["index"]
    if index == (2, 1, 0):
        return Finding("channel order", where, "blue, green, red")
    if sorted(index) == list(range(len(index))):
        few = ", ".join(map(str, index[:8]))
        return Finding("channel order", where, few + (", …" if len(index) > 8 else ""))
    return None


# ---------------------------------------------------------------------------------------- affines


def _affine(
    edit: Edit, where: str, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
) -> list[Finding] | None:
    if edit.kind == "insert":
        assert edit.candidate is not None
        return _extra_affine(edit.candidate, where, candidate)
    assert edit.reference is not None
    mine = roles_of(edit.reference, reference)
    if edit.kind == "delete":
        if "var" in mine.leaves:
            return [Finding("missing batch norm", where)]
        if set(mine.leaves) <= {"bias", "inner bias"} and mine.leaves:
            return [Finding("missing bias", where)]
        if not mine.leaves:
            return [Finding("missing scaling", where, _formula(edit.reference))]
        return None
    assert edit.candidate is not None
    other = roles_of(edit.candidate, candidate)
    if shared := _shared(mine, other, where, reference, candidate):
        return shared
    return _norms(edit.reference, edit.candidate, mine, other, where, reference)


def _shared(
    mine: Roles,
    other: Roles,
    where: str,
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
) -> list[Finding]:
    """The parts for which the candidate reads the weights of another layer."""
    found = []
    for role in mine.leaves.keys() & other.leaves.keys():
        made = candidate[other.leaves[role]].reshape(-1)
        of = [n for n, leaf in reference.items() if same_values(leaf.reshape(-1), made)]
        if of and mine.leaves[role] not in of:
            found.append(Finding("weight shared", where, f"its {role} is {of[0]}"))
    return found


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two weights are of one shape and equal to rounding in float64."""
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), 1e-9, 1e-12)


def _extra_affine(node: Node, where: str, leaves: Mapping[str, Tensor]) -> list[Finding] | None:
    roles = roles_of(node, leaves)
    if "var" in roles.leaves:
        return [Finding("extra batch norm", where)]
    if roles.leaves:
        return [Finding("extra bias" if set(roles.leaves) == {"bias"} else "extra scale", where)]
    name = "input transform" if where == "images" else "extra scaling"
    return [Finding(name, where, _formula(node))]


def _formula(node: Node) -> str:
    """An affine in words, such as "2·x − 1"."""
    scale, shift = (node.attrs[name].value.double().reshape(-1) for name in ("scale", "shift"))

    def words(values: Tensor) -> str:
        if bool((values - values[0]).abs().max() <= 1e-12 * max(float(values.abs().max()), 1e-30)):
            return f"{float(values[0]):.6g}"
        few = ", ".join(f"{float(v):.4g}" for v in values[:3])
        return f"({few}{', …' if len(values) > 3 else ''})"

    text = "x" if bool((scale == 1).all()) else f"{words(scale)}·x"
    if bool((shift == 0).all()):
        return text
    if len(set(shift.tolist())) == 1 and float(shift[0]) < 0:
        return f"{text} − {words(-shift)}"
    return f"{text} + {words(shift)}"


def _norms(
    reference: Node,
    candidate: Node,
    mine: Roles,
    other: Roles,
    where: str,
    leaves: Mapping[str, Tensor],
) -> list[Finding] | None:
    """Which parts of a norm the candidate has otherwise; tested by computing what that makes."""
    values = {role: leaves[name].double() for role, name in mine.leaves.items()}
    if not _is(reference, _norm_of(values, mine.epsilon)):
        return None  # more than a norm: nothing is said of it
    lacks = [part for part in NEUTRAL if part in values and part not in other.leaves]
    epsilons = [mine.epsilon]
    both = other.epsilon is not None and mine.epsilon is not None
    if both and not math.isclose(other.epsilon, mine.epsilon, rel_tol=1e-4):  # type: ignore[arg-type]
        epsilons.append(other.epsilon)
    for parts, epsilon in _fewest(lacks, epsilons):
        given = {r: v for r, v in values.items() if r not in parts}
        if "var" in parts:
            given["var"] = torch.ones_like(values["var"]) - (epsilon or 0.0)
        changed = bool(parts) or epsilon != mine.epsilon
        if changed and _is(candidate, _norm_of(given, epsilon)):
            return _norm_findings(parts, epsilon, mine, where)
    scale = candidate.attrs["scale"].value.double().reshape(-1)
    scale, wanted = torch.broadcast_tensors(scale, _norm_of(values, mine.epsilon)[0])
    if not lacks and torch.allclose(scale, wanted, 1e-9):
        return [Finding("extra bias", where)]
    return None


def _fewest(
    lacks: Sequence[str], epsilons: Sequence[float | None]
) -> Iterator[tuple[tuple[str, ...], float | None]]:
    for count in range(len(lacks) + 1):
        for parts in itertools.combinations(lacks, count):
            for epsilon in epsilons:
                yield parts, epsilon


def _norm_findings(
    parts: Sequence[str], epsilon: float | None, mine: Roles, where: str
) -> list[Finding]:
    normed = "var" in mine.leaves
    if {"var", "mean"} <= set(parts) and normed:
        return [Finding("missing batch norm", where)]
    names = {
        "scale": "missing batch norm scale" if normed else "missing scale",
        "bias": "missing batch norm bias" if normed else "missing bias",
        "inner bias": "missing bias",
        "mean": "missing batch norm mean",
        "var": "missing batch norm variance",
    }
    found = [Finding(names[part], where) for part in parts]
    if epsilon != mine.epsilon:
        found.append(Finding("BN epsilon", where, f"{epsilon:g} in place of {mine.epsilon:g}"))
    return found


def _norm_of(values: Mapping[str, Tensor], epsilon: float | None) -> tuple[Tensor, Tensor]:
    get = lambda part: values.get(part, torch.tensor(NEUTRAL[part], dtype=torch.float64))  # noqa: E731
    scale = get("scale").reshape(-1)
    if "var" in values:
        scale = scale * torch.rsqrt(values["var"].reshape(-1) + (epsilon or 0.0))
    inner = get("inner bias").reshape(-1) - get("mean").reshape(-1)
    return scale, get("bias").reshape(-1) + inner * scale


def _is(node: Node, affine: tuple[Tensor, Tensor]) -> bool:
    for name, value in zip(("scale", "shift"), affine, strict=True):
        real = node.attrs[name].value.double()
        try:
            real, value = torch.broadcast_tensors(real.reshape(-1), value)
        except RuntimeError:
            return False
        size = max(float(real.abs().max()), 1e-30)
        unit = 1e-9 if node.attrs[name].value.dtype == torch.float64 else 1e-5
        if not torch.allclose(real, value, unit, unit * size):
            return False
    return True


# ---------------------------------------------------------------------------------------- kernels


def kernel_names(unit: Unit, candidate: Node, others: Sequence[Unit]) -> list[Finding] | None:
    """How the candidate's kernel comes from the reference's, whose units are `others`; None where
    it does not.
    """
    reference = unit.node.attrs["kernel"].value.double()
    made = candidate.attrs["kernel"].value.double()
    where = unit.name
    equal = lambda v: v.shape == made.shape and torch.allclose(v, made, 1e-6, 1e-12)  # noqa: E731
    tries = [
        ("transposed kernel", "height and width", reference.transpose(0, 1)),
        ("transposed kernel", "inputs and outputs", reference.transpose(2, 3)),
        ("flipped kernel", "height and width", reference.flip(0, 1)),
        ("flipped kernel", "height", reference.flip(0)),
        ("flipped kernel", "width", reference.flip(1)),
        ("channel order", "inputs reversed", reference.flip(2)),
        ("channel order", "outputs reversed", reference.flip(3)),
    ]
    for name, detail, value in tries:
        if equal(value):
            if name == "transposed kernel" and reference.shape[:2] == (1, 1):
                name = "transposed classifier"
            return [Finding(name, where, detail)]
    for other in others:
        if other is not unit and equal(other.node.attrs["kernel"].value.double()):
            return [Finding("weight shared", where, f"that of {other.name}")]
    ratio = (
        float((reference * made).sum() / (reference * reference).sum())
        if reference.shape == made.shape
        else 0.0
    )
    if ratio and equal(reference * ratio):
        return [Finding("scaled kernel", where, f"{ratio:.6g} times")]
    if order := _permuted(reference, made):
        return [Finding("channel order", where, order)]
    return None


def _permuted(reference: Tensor, made: Tensor) -> str:
    """Inputs or outputs in another order, found by matching channels."""
    if reference.shape != made.shape:
        return ""
    for axis, words in ((2, "inputs"), (3, "outputs")):
        one = reference.movedim(axis, 0).reshape(reference.shape[axis], -1)
        other = made.movedim(axis, 0).reshape(reference.shape[axis], -1)
        rows, columns = linear_sum_assignment(torch.cdist(other, one).numpy())
        if torch.allclose(one[columns], other[rows], 1e-6, 1e-12):
            few = ", ".join(str(int(c)) for c in columns[:8])
            return f"{words} {few}{', …' if len(columns) > 8 else ''}"
    return ""


def setting_names(unit: Unit, candidate: Node, changed: Sequence[str]) -> list[Finding]:
    """Settings of a convolution that differ."""
    found = []
    one, other = unit.node.attrs, candidate.attrs
    for name in changed:
        if name == "pads":
            total = [[a + b for a, b in attrs["pads"]] for attrs in (one, other)]
            kind = "padding side" if total[0] == total[1] else "padding"
            detail = f"{_pads(other['pads'][0])} in place of {_pads(one['pads'][0])}"
            found.append(Finding(kind, unit.name, detail))
        else:
            values = [a[name] if name == "groups" else _short(a[name]) for a in (other, one)]
            found.append(Finding(name, unit.name, f"{values[0]} in place of {values[1]}"))
    return found


def _short(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}×{pair[1]}"
