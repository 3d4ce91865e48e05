"""Both sides trained beside each other: losses, gradients, and what K steps of SGD leave."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util

from googlenet_jax.models.network import Network
from googlenet_jax.verification.compare import MARGIN, Row, difference
from googlenet_jax.verification.match import Match, our_entries
from googlenet_jax.verification.ours import Fault, with_faults
from googlenet_jax.verification.theirs import Theirs, TorchUnit, WithoutDropout, named

LEARNING_RATE, MOMENTUM, AUX_WEIGHT = 1e-3, 0.9, 0.3
CONTROLS = 2  # runs of theirs with every weight moved by one unit in the last place

Arrays = dict[str, np.ndarray]


def train_ours(
    model: Network,
    variables: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    steps: int,
    heads: Sequence[str],
    faults: Sequence[Fault] = (),
) -> Arrays:
    """Takes steps of SGD with momentum on the sum of the heads' losses, those of auxiliary heads
    times 0.3, without dropout.

    Args:
      labels: [steps, N]. heads: the outputs that both sides have.
    Returns:
      "loss step 1", …; "gradient conv1/kernel", … of the first step; "parameter …", "momentum …"
      and "statistic …" after the last.
    """
    for fault in faults:
        images, variables = fault.images(images), fault.variables(variables)
    params = jax.tree.map(jnp.asarray, variables["params"])
    stats = jax.tree.map(jnp.asarray, variables.get("batch_stats", {}))
    intercept = functools.partial(_intercept, faults, {})

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step_of(params: Any, stats: Any, labels: Any) -> Any:
        given = {"params": params, "batch_stats": stats}
        with nn.intercept_methods(intercept):
            rngs = {"dropout": jax.random.key(0)}
            output, updated = model.apply(
                given, jnp.asarray(images), train=True, rngs=rngs, mutable=["batch_stats"]
            )
        outputs = {"logits": output.logits, **output.aux_logits}
        for fault in faults:
            outputs = fault.outputs(outputs)
        losses = [_cross_entropy(outputs[name], labels, name != "logits") for name in heads]
        return sum(losses), updated.get("batch_stats", {})

    found: Arrays = {}
    momenta = jax.tree.map(jnp.zeros_like, params)
    for step in range(steps):
        (loss, stats), gradients = step_of(params, stats, jnp.asarray(labels[step]))
        found[f"loss step {step + 1}"] = np.asarray(loss)
        if step == 0:
            found |= _flat("gradient", gradients)
        momenta = jax.tree.map(lambda m, g: MOMENTUM * m + g, momenta, gradients)
        params = jax.tree.map(lambda p, m: p - LEARNING_RATE * m, params, momenta)
    found |= _flat("parameter", params) | _flat("momentum", momenta)
    return found | _flat("statistic", stats)


def _intercept(
    faults: Sequence[Fault], bare: dict[str, Any], function: Any, args: Any, kwargs: Any, at: Any
) -> Any:
    layer = "/".join(at.module.path)
    if at.method_name != "__call__" or not layer:
        return function(*args, **kwargs)
    given = args[0]
    if isinstance(at.module, nn.Dropout):
        return given
    for fault in faults:
        given = bare[fault.reads[layer]] if layer in fault.reads else given
    bare[layer] = with_faults(function, (given, *args[1:]), kwargs, at.module, layer, faults)
    return bare[layer]


def _cross_entropy(logits: Any, labels: Any, auxiliary: bool) -> Any:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen.mean() * (AUX_WEIGHT if auxiliary else 1.0)


def _flat(kind: str, tree: Any) -> Arrays:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {f"{kind} {name}": np.asarray(value) for name, value in flat.items()}


def train_theirs(
    theirs: Theirs, images: np.ndarray, labels: np.ndarray, steps: int, heads: Sequence[str]
) -> dict[str, Arrays]:
    """The same by PyTorch's own losses and optimizer, on a copy of the module.

    Returns {"loss", "gradient", "parameter", "momentum"}: arrays by PyTorch's names; buffers stand
    among the parameters.
    """
    copied = Theirs(copy.deepcopy(theirs.module), str(theirs.dtype).removeprefix("torch."))
    copied.prepare(train=True)
    parameters = dict(copied.module.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), LEARNING_RATE, MOMENTUM)
    copied.channels_last = theirs.channels_last
    pixels = copied.pixels(images)
    found: dict[str, Arrays] = {"loss": {}, "gradient": {}}
    for step in range(steps):
        optimizer.zero_grad()
        with WithoutDropout():
            outputs = dict(named(copied.module(pixels)))
        target = torch.from_numpy(labels[step].astype(np.int64))
        losses = [
            torch.nn.functional.cross_entropy(outputs[name].flatten(1), target)
            * (1.0 if name == "logits" else AUX_WEIGHT)
            for name in heads
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        found["loss"][f"loss step {step + 1}"] = _array(loss)
        if step == 0:
            given = {n: p.grad for n, p in parameters.items() if p.grad is not None}
            found["gradient"] = {name: _array(value) for name, value in given.items()}
        optimizer.step()
    states = {name: optimizer.state.get(value, {}) for name, value in parameters.items()}
    momenta = {n: s["momentum_buffer"] for n, s in states.items() if "momentum_buffer" in s}
    found["momentum"] = {name: _array(value) for name, value in momenta.items()}
    return found | {"parameter": copied.pull()}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().copy()


def nudged(theirs: Theirs, seed: int) -> Theirs:
    """A copy whose every parameter is moved by one unit in the last place, up or down at random."""
    copied = Theirs(copy.deepcopy(theirs.module), str(theirs.dtype).removeprefix("torch."))
    copied.channels_last = theirs.channels_last
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in copied.module.parameters():
            up = torch.rand(value.shape, generator=generator) < 0.5
            limit = torch.where(up, torch.inf, -torch.inf).to(value.dtype)
            value.copy_(torch.nextafter(value, limit))
    return copied


def under_our_names(
    found: Mapping[str, Arrays],
    variables: Mapping[str, Any],
    match: Match,
    units: Mapping[str, TorchUnit],
) -> Arrays:
    """What `train_theirs` returns, in our layouts and under the names of `train_ours`."""
    result = dict(found["loss"])
    stats = _flat("", variables.get("batch_stats", {}))
    for kind in ("gradient", "parameter", "momentum"):
        for name, value in our_entries(variables, match, units, found[kind]).items():
            is_statistic = f" {name}" in stats
            result[f"{'statistic' if is_statistic else kind} {name}"] = value
    return result


def compare_training(
    ours: Arrays, theirs: Arrays, controls: Sequence[Arrays], forward: float
) -> list[Row]:
    """Compares all that both have.

    Training amplifies rounding, so the bound is measured, entry by entry: MARGIN³ times how far
    theirs goes from itself where every weight begins one unit in the last place away, and at least
    MARGIN³ times the bound of the forward pass, `forward`.
    """
    rows = []
    for name in (each for each in ours if each in theirs):
        moved = max(difference(control[name], theirs[name])[0] for control in controls)
        bound = MARGIN**3 * max(moved, forward)
        relative, largest = difference(ours[name], theirs[name])
        rows.append(Row(name, "", relative, largest, bound, ours[name].shape, theirs[name].shape))
    return rows
