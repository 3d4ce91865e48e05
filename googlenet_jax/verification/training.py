"""Both sides trained with the same batches: losses, gradients, and what K steps of SGD leave."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from googlenet_jax.verification.from_jax import named_leaves, output_label, path_name, to_torch
from googlenet_jax.verification.from_torch import WithoutDropout, named
from googlenet_jax.verification.naming import Finding
from googlenet_jax.verification.rows import MARGIN, difference
from googlenet_jax.verification.sides import JaxSide, Side, TorchSide
from googlenet_jax.verification.transfer import Move, moved

LEARNING_RATE, MOMENTUM, AUX_WEIGHT = 1e-3, 0.9, 0.3
CONTROLS = 2  # runs with every weight moved by one unit in the last place

Entries = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One entry's comparison after training; `layer` is such as "gradient params/conv1/kernel"."""

    layer: str
    relative: float
    largest: float
    bound: float

    @property
    def parted(self) -> bool:
        """Whether the difference is more than rounding."""
        return not self.relative <= self.bound


@dataclasses.dataclass
class Trained:
    """What K steps leave: by the side's own names, and losses by "loss step 1"."""

    loss: Entries
    gradient: Entries
    first: Entries  # parameters and statistics after one step
    parameter: Entries
    momentum: Entries


def train(
    side: Side,
    images: np.ndarray,
    labels: np.ndarray,
    outputs: Sequence[str],
    whole: bool,
    frozen: frozenset[str] = frozenset(),
    nudge: int | None = None,
) -> Trained:
    """Takes steps of SGD with momentum on the sum of the outputs' losses, those of auxiliary heads
    times 0.3, without dropout.

    Args:
      labels: [steps, N]. outputs: the side's own names of those that both have, in order.
      whole: batch norm uses the batch; else everything stays as in evaluation.
      frozen: entries that are not trained. nudge: a seed; every weight begins one unit in the last
        place away, up or down at random. The side is afterwards as it was.
    """
    if isinstance(side, TorchSide):
        with side.kept():
            if nudge is not None:
                away = _nudge(nudge)
                side.assign({n: away(p.detach()) for n, p in side.module.named_parameters()})
            return _train_torch(side, images, labels, outputs, whole, frozen)
    assert isinstance(side, JaxSide)
    if nudge is not None:
        side = side.nudged(_nudge(nudge))
    return _train_jax(side, images, labels, outputs, whole, frozen)


def can_train(side: Side) -> bool:
    """Whether a side has a mode for training."""
    return isinstance(side, TorchSide) or hasattr(side, "model")


def frozen_in(side: Side) -> frozenset[str]:
    """A module's parameters that no gradient reaches."""
    if not isinstance(side, TorchSide):
        return frozenset()
    return frozenset(n for n, p in side.module.named_parameters() if not p.requires_grad)


def _weight(place: int) -> float:
    return AUX_WEIGHT if place else 1.0


def _train_jax(
    side: JaxSide,
    images: np.ndarray,
    labels: np.ndarray,
    outputs: Sequence[str],
    whole: bool,
    frozen: frozenset[str],
) -> Trained:
    model = getattr(side, "model", None) if whole else None
    given = jnp.asarray(side.given(images))

    def run(tree: Any) -> tuple[dict[str, Any], Any]:
        if model is None:
            made = side.function(tree, given)
            flat = jax.tree_util.tree_flatten_with_path(made)[0]
            return {output_label(path): value for path, value in flat}, tree
        rngs = {"dropout": jax.random.key(0)}
        with nn.intercept_methods(_without_dropout):
            output, new = model.apply(tree, given, train=True, rngs=rngs, mutable=["batch_stats"])
        return {"logits": output.logits, **output.aux_logits}, {**tree, **new}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step_of(tree: Any, labels: Any) -> Any:
        made, new = run(tree)
        losses = []
        for place, name in enumerate(outputs):
            logits = made[name].reshape(len(labels), -1)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
            losses.append(-chosen.mean() * _weight(place))
        return sum(losses), new

    still = lambda path: path_name(path) in frozen or path_name(path).startswith("batch_stats")  # noqa: E731
    tree = jax.tree.map(jnp.asarray, side.parameters)
    momenta = jax.tree.map(jnp.zeros_like, tree)
    found = Trained({}, {}, {}, {}, {})
    for step in range(len(labels)):
        (loss, new), gradients = step_of(tree, jnp.asarray(labels[step]))
        found.loss[f"loss step {step + 1}"] = to_torch(loss)
        if step == 0:
            found.gradient = named_leaves(gradients)
        momenta = jax.tree.map(lambda m, g: MOMENTUM * m + g, momenta, gradients)
        tree = jax.tree_util.tree_map_with_path(
            lambda path, p, m: p if still(path) else p - LEARNING_RATE * m, new, momenta
        )
        if step == 0:
            found.first = named_leaves(tree)
    found.parameter, found.momentum = named_leaves(tree), named_leaves(momenta)
    return found


def _without_dropout(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Linen's dropout does nothing."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0]
    return function(*args, **kwargs)


def _train_torch(
    side: TorchSide,
    images: np.ndarray,
    labels: np.ndarray,
    outputs: Sequence[str],
    whole: bool,
    frozen: frozenset[str],
) -> Trained:
    parameters = {n: p for n, p in side.module.named_parameters() if p.requires_grad}
    trained = {n: p for n, p in parameters.items() if n not in frozen}
    optimizer = torch.optim.SGD(list(trained.values()) or [torch.zeros(1)], LEARNING_RATE, MOMENTUM)
    pixels = side.pixels(images)
    found = Trained({}, {}, {}, {}, {})
    mode = side.training() if whole else side.evaluating(True)
    with mode, WithoutDropout(settled=not whole):
        for step in range(len(labels)):
            optimizer.zero_grad()
            made = named(side.module(pixels))
            target = torch.from_numpy(labels[step].astype(np.int64))
            losses = [
                torch.nn.functional.cross_entropy(made[name].flatten(1), target) * _weight(place)
                for place, name in enumerate(outputs)
            ]
            loss = torch.stack(losses).sum()
            found.loss[f"loss step {step + 1}"] = loss.detach().double()
            if not loss.requires_grad:  # all of it is frozen: there is nothing to step
                continue
            loss.backward()
            if step == 0:
                given = {n: p.grad for n, p in trained.items() if p.grad is not None}
                found.gradient = {n: g.detach().double().clone() for n, g in given.items()}
            optimizer.step()
            if step == 0:
                found.first = _copied(side)
    found.parameter = _copied(side)
    found.first = found.first or found.parameter
    states = {n: optimizer.state.get(p, {}) for n, p in trained.items()}
    found.momentum = {
        n: s["momentum_buffer"].detach().double().clone()
        for n, s in states.items()
        if s.get("momentum_buffer") is not None
    }
    return found


def _copied(side: TorchSide) -> Entries:
    entries = {n: v for n, v in side.entries().items() if v.is_floating_point()}
    return {name: value.detach().double().clone() for name, value in entries.items()}


def _nudge(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Tensor) -> Tensor:
        up = torch.rand(value.shape, generator=generator) < 0.5
        return torch.nextafter(value, torch.where(up, torch.inf, -torch.inf).to(value.dtype))

    return moved


def compare_training(
    reference: Trained,
    candidate: Trained,
    controls: Sequence[Trained],
    moves: Sequence[Move],
    forward: float,
    statistics: frozenset[str],
) -> list[TrainingRow]:
    """Compares all that both have, under the reference's names.

    Training amplifies rounding, so the bound is measured, entry by entry: MARGIN³ times how far the
    candidate goes from itself where every weight begins one unit in the last place away, and at
    least MARGIN³ times the forward pass's bound, `forward`.

    Args:
      statistics: the reference's entries that batch norm keeps.
    """
    rows = [
        _row(name, value, candidate.loss[name], [c.loss[name] for c in controls], forward)
        for name, value in reference.loss.items()
    ]
    for kind in ("gradient", "parameter", "momentum"):
        mine, of_candidate = getattr(reference, kind), getattr(candidate, kind)
        for move in moves:
            if move.source not in mine or move.target not in of_candidate:
                continue
            if move.source in statistics and kind != "parameter":
                continue
            value = moved([move], mine, {})[move.target]
            label = "statistic" if move.source in statistics else kind
            others = [getattr(c, kind)[move.target] for c in controls]
            rows.append(
                _row(f"{label} {move.source}", value, of_candidate[move.target], others, forward)
            )
    return rows


def _row(
    name: str, mine: Tensor, of_candidate: Tensor, controls: Sequence[Tensor], forward: float
) -> TrainingRow:
    wander = max((difference(each, of_candidate)[0] for each in controls), default=0.0)
    bound = MARGIN**3 * max(wander if math.isfinite(wander) else 0.0, forward)
    relative, largest = difference(mine.reshape(of_candidate.shape), of_candidate)
    return TrainingRow(name, relative, largest, bound)


def statistics_findings(
    before: Mapping[str, Tensor],
    reference: Trained,
    candidate: Trained,
    moves: Sequence[Move],
    means: Mapping[str, str],
    momentum: float,
    bound: float,
) -> list[Finding]:
    """Why running statistics differ after one step: another momentum, or the other variance.

    Args:
      before: the reference's entries at the start. means: a layer's running variance → its mean.
      momentum: how much of a batch the reference's statistics take.
    Each is tested: the statistics that it would give must be the candidate's.
    """
    target = {move.source: move.target for move in moves if move.source}
    found: list[Finding] = []
    for var, mean in means.items():
        if var not in target or mean not in target:
            continue
        share = _share(before[mean], reference.first[mean], candidate.first[target[mean]], bound)
        if share is None:
            continue  # not a matter of momentum
        took = momentum * share
        layer = mean.rpartition("/bn/")[0].removeprefix("batch_stats/")
        batch = before[var] + (reference.first[var] - before[var]) / momentum
        of_candidate = candidate.first[target[var]].reshape(batch.shape)
        factor = float(((of_candidate - before[var]) / took + before[var]).sum() / batch.sum())
        made = before[var] + took * (batch * factor - before[var])
        if difference(made, of_candidate)[0] > bound:
            continue
        if abs(share - 1) > 1e-6:
            found.append(Finding("BN momentum", layer, f"{took:.6g} in place of {momentum:.6g}"))
        if abs(factor - 1) > 1e-9:
            count = 1 / (1 - factor) if factor < 1 else 1 / (factor - 1) + 1
            if count > 1.5 and abs(count - round(count)) < 1e-3 * count:
                detail = "biased" if factor < 1 else "unbiased"
                found.append(Finding("biased running variance", layer, detail))
    layers = {var.rpartition("/bn/")[0] for var in means if var in target}
    return _everywhere(found, len(layers))


def _share(
    before: Tensor, of_reference: Tensor, of_candidate: Tensor, bound: float
) -> float | None:
    """By how much more the candidate's running mean moved; None where no one number says it."""
    step, other = of_reference - before, of_candidate.reshape(before.shape) - before
    size = float((step * step).sum())
    share = float((step * other).sum()) / size if size else 1.0
    return (
        share
        if share > 0 and difference(before + share * step, before + other)[0] <= bound
        else None
    )


def _everywhere(found: list[Finding], layers: int) -> list[Finding]:
    result: list[Finding] = []
    for each in found:
        alike = [f for f in found if (f.name, f.detail) == (each.name, each.detail)]
        each = dataclasses.replace(each, layer="") if len(alike) == layers > 1 else each
        result += [each] if each not in result else []
    return result
