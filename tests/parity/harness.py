"""A reference network and ours with the same random weights, run on the same images, in float64 on
the CPU; see docs/parity.md.

Everything on PyTorch's side (normalisation, losses, optimizer, average) is written here with
PyTorch's own means; on ours the project's train step runs as `train.py` runs it. Needs JAX's 64-bit
mode.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import traverse_util
from ml_collections import ConfigDict
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

import googlenet_jax as gj
from googlenet_jax.data.sources import Source
from googlenet_jax.models.network import Network
from googlenet_jax.runtime.sharding import create_mesh, replicate, shard_batch
from googlenet_jax.training.classification import build_model, make_task
from googlenet_jax.training.config import default_config, in_steps, resolve
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.state import TrainState
from googlenet_jax.training.step import make_train_step
from googlenet_jax.verification import reference

TOLERANCE = 1e-9
# Training amplifies rounding, the more the higher the rate. At this one it stays far below the
# tolerance, so that what exceeds it is logic; at the configs' own rates `drift` compares with a
# control in place of a fixed tolerance.
LEARNING_RATE, BATCH_SIZE = 1e-4, 12
# The control at higher rates: PyTorch beside itself, every weight moved by one unit in the last
# place. Our distance from PyTorch may be this many times the largest of so many such distances,
# over the steps where that says something: where it is below the limit. Beyond, single ReLUs and
# pools fall to another side in one run and not in the others, and one such fall outweighs all
# rounding.
DRIFT_FACTOR, DRIFT_CONTROLS, DRIFT_LIMIT = 10, 8, 1e-8
WITH_AUX_DROPOUT = ("googlenet", "googlenet_bn", "googlenet_naive", "googlenet_torchvision")
Arrays = Mapping[str, np.ndarray]

# ------------------------------------------------------------------------------- images and weights


def images(size: int, count: int = 3) -> np.ndarray:
    """Returns uint8 [count, size, size, 3]: in turn a real digit, an 8-level quantised one and a
    constant image (pools have ties there).
    """
    digits = load_digits().images  # [1797, 8, 8], 0–16
    made = []
    for i in range(count):
        grey = digits[37 * i + 1] * 15.9
        smooth = cv2.resize(grey, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        coarse = cv2.resize(grey // 32 * 36, (size, size), interpolation=cv2.INTER_NEAREST)
        made.append((smooth, coarse, np.full((size, size), 17.0 * (i + 1) % 256))[i % 3])
    shades = np.array([1.0, 0.8, 0.55])  # so that the channels differ
    return (np.stack(made)[..., None] * shades).astype(np.uint8)


def photographs(size: int, count: int) -> np.ndarray:
    """Returns uint8 [count, size, size, 3]: squares of scikit-learn's two photographs, of random
    places and sides.
    """
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        photograph = load_sample_images().images[i % 2]
        side = rng.integers(size, min(photograph.shape[:2]))
        top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
        square = photograph[top : top + side, left : left + side]
        made.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return np.stack(made)


def randomise(network: nn.Module, seed: int, variance: tuple[float, float] = (0.5, 2.0)) -> None:
    """Draws every parameter and running statistic, none of them zero or one; kernels such that
    activations keep their size.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim >= 2:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(*variance, generator=generator)
            elif name.endswith("bn.weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.2, generator=generator)


def nudge(network: nn.Module, seed: int) -> None:
    """Moves every parameter by one unit in the last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            up = torch.rand(value.shape, generator=generator) < 0.5
            value.copy_(
                torch.nextafter(value, torch.where(up, torch.inf, -torch.inf).to(value.dtype))
            )


def make_pair(
    name: str, seed: int = 0, **options: Any
) -> tuple[nn.Module, Network, dict[str, Any]]:
    """Returns the reference, our model of the same options and its variables, converted from the
    reference's state dict.
    """
    network = (reference.NETWORKS | reference.INCEPTIONS)[name](**options).double()
    randomise(network, seed)
    ours = {option: value for option, value in options.items() if option not in ("side", "eps")}
    if options.get("side"):
        ours["fully_connected_head"] = True
    if "eps" in options:
        ours["bn_epsilon"] = options["eps"]
    model = gj.create_model(
        name,
        **{
            "num_classes": network.num_classes,
            "dtype": "float64",
            "param_dtype": "float64",
            **ours,
        },
    )
    return network, model, gj.weights.from_torch(model, network.state_dict())


# ---------------------------------------------------------------------------------------- comparing


def relative_error(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖₂ / ‖theirs‖₂; where theirs is all zeros, 0 if ours is too and infinite if
    not.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    distance, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    if size == 0:
        return 0.0 if distance == 0 else np.inf
    return float(distance / size)


def compare(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Returns the relative error of each array by name; both must have the same names."""
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    return {name: relative_error(ours[name], theirs[name]) for name in theirs}


def endpoint_errors(name: str, size: int, **options: Any) -> dict[str, float]:
    """Relative error of every endpoint, the logits of all heads among them, in evaluation on the
    three kinds of image.
    """
    network, model, variables = make_pair(name, **options)
    batch = images(size) / 64.0 - 1.5
    with torch.no_grad():
        theirs = reference.endpoints(network.eval(), torch.from_numpy(batch).permute(0, 3, 1, 2))
    return compare(
        gj.endpoints(model, variables, jnp.asarray(batch)),
        {name: value.numpy() for name, value in theirs.items()},
    )


# ----------------------------------------------------------------------------------------- training


def make_config(
    name: str, size: int, options: Mapping[str, Any], changes: Mapping[str, Any]
) -> ConfigDict:
    """A config for ten steps whose every ingredient acts: decay, momentum, a stepped rate, an
    average that starts late.
    """
    config = default_config()
    config.dtype = "float64"
    config.model.name = name
    config.model.options = ConfigDict(dict(options))
    config.augment.flip = False
    fields = {
        "preprocessing.size": size,
        "preprocessing.resize": size,
        "duration": "10 steps",
        "optimizer.weight_decay": 1e-2,
        "schedule.name": "step",
        "schedule.learning_rate": LEARNING_RATE,
        "schedule.factor": 0.5,
        "schedule.every": "4 steps",
        "ema.decay": 0.9,
        "ema.start": "3 steps",
        **changes,
    }
    config.update_from_flattened_dict(fields)
    return resolve(config).config


def _by_torch_name(
    model: Network, params: Any, batch_stats: Any, prefix: str
) -> dict[str, np.ndarray]:
    """Our trees under PyTorch's names."""
    variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
    arrays = gj.weights.to_torch(model, jax.tree.map(np.asarray, variables))
    return {
        f"{prefix} {name}": value
        for name, value in arrays.items()
        if not name.endswith("num_batches_tracked")
    }


class TenClasses(Source):
    """A data set of which nothing is read; an epoch is one batch."""

    name, split, class_names = "ten", "train", tuple("0123456789")

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def identity(self) -> dict[str, Any]:
        return {}


class Ours:
    """Our side of a training run: the project's compiled step."""

    def __init__(self, model: Network, variables: Any, config: ConfigDict) -> None:
        self.model = model
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        mesh, source = create_mesh(jax.devices()[:1]), TenClasses(config.batch_size)
        task, when = (
            dataclasses.replace(make_task(resolve(config), mesh, source, []), model=model),
            in_steps(config, len(source)),
        )
        rates = {"factor": config.schedule.factor, "every": when.decay_every}
        schedule = create_schedule(
            config.schedule.name, config.schedule.learning_rate, when.total, **rates
        )
        tx = create_optimizer(schedule, **config.optimizer.to_dict())
        # A copy of the average: the step uses its state up.
        average = jax.tree.map(np.copy, {"params": params, "batch_stats": batch_stats})
        self.state = replicate(
            TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), average),
            mesh,
        )
        average_of = {"ema_decay": config.ema.decay, "ema_start": when.ema_start}
        self.step = make_train_step(task, tx, schedule, mesh, **average_of)
        self.mesh = mesh

    def train(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Takes a step; returns its losses and learning rate."""
        self.state, metrics = self.step(
            self.state, shard_batch(batch, self.mesh), jax.random.key(0)
        )
        return {
            name: np.asarray(value)
            for name, value in metrics.items()
            if name.startswith(("loss", "learning_rate"))
        }

    def buffers(self) -> Any:
        return optax.tree.get(self.state.opt_state, "trace")

    def gradients(self, weight_decay: float, initial: Any) -> dict[str, np.ndarray]:
        """After one step: what the momentum buffer holds, less the weight decay."""
        flat = traverse_util.flatten_dict(self.buffers())
        start = traverse_util.flatten_dict(initial)
        plain = {
            path: value - weight_decay * start[path] if "kernel" in path[-1] else value
            for path, value in flat.items()
        }
        named = _by_torch_name(
            self.model, traverse_util.unflatten_dict(plain), self.state.batch_stats, "gradient"
        )
        return {name: value for name, value in named.items() if ".running_" not in name}

    def everything(self) -> dict[str, np.ndarray]:
        """Parameters and statistics, momentum buffers, averages."""
        state = self.state
        momentum = _by_torch_name(self.model, self.buffers(), state.batch_stats, "momentum")
        return {
            **_by_torch_name(self.model, state.params, state.batch_stats, "value"),
            **{name: value for name, value in momentum.items() if ".running_" not in name},
            **_by_torch_name(self.model, state.ema["params"], state.ema["batch_stats"], "average"),
        }


class Theirs:
    """PyTorch's side of a training run, by PyTorch's own optimizer and losses."""

    def __init__(self, network: nn.Module, config: ConfigDict) -> None:
        self.network, self.config = network.train(), config
        named = dict(network.named_parameters())
        decayed = [value for value in named.values() if value.ndim >= 2]
        # ".bn." in torchvision's names, "_bn." in the port's.
        layer_biases = [
            value for name, value in named.items() if value.ndim == 1 and "bn." not in name
        ]
        norms = [value for name, value in named.items() if value.ndim == 1 and "bn." in name]
        groups = [
            {"params": decayed, "weight_decay": config.optimizer.weight_decay, "multiplier": 1.0},
            {
                "params": layer_biases,
                "weight_decay": 0.0,
                "multiplier": config.optimizer.bias_rate_multiplier,
            },
            {"params": norms, "weight_decay": 0.0, "multiplier": 1.0},
        ]
        optimizer = config.optimizer
        self.optimizer = torch.optim.SGD(
            [g for g in groups if g["params"]], 1.0, optimizer.momentum, nesterov=optimizer.nesterov
        )
        self.steps = 0
        self.average: dict[str, torch.Tensor] = {}

    def _rate(self) -> float:
        schedule = self.config.schedule
        return schedule.learning_rate * schedule.factor ** (
            self.steps // int(schedule.every.split()[0])
        )

    def train(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Takes a step; returns its losses and learning rate."""
        config, rate = self.config, self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
        mean, std = (
            torch.tensor(config.preprocessing[field], dtype=torch.float64)
            for field in ("mean", "std")
        )
        pixels = (torch.from_numpy(batch["image"]).double() - mean) / std
        outputs = self.network(pixels.permute(0, 3, 1, 2))
        criterion = functools.partial(
            nn.functional.cross_entropy, label_smoothing=config.loss.label_smoothing
        )
        losses = {
            name: criterion(logits, torch.from_numpy(batch["label"]).long())
            for name, logits in outputs.items()
        }
        loss = losses["logits"] + sum(
            config.loss.aux_weight * losses[name] for name in losses if name != "logits"
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._update_average()
        self.steps += 1
        parts = {"loss_" + name.replace("logits", "main"): value for name, value in losses.items()}
        found = {"loss": loss, **parts, "learning_rate": torch.tensor(rate, dtype=torch.float64)}
        return {name: value.detach().numpy() for name, value in found.items()}

    def _update_average(self) -> None:
        after = self.steps - int(self.config.ema.start.split()[0])
        rising = (1 + after) / (10 + after)  # TensorFlow's rule for the first steps
        decay = min(self.config.ema.decay, rising) if after >= 0 else 0.0
        for name, value in self._values().items():
            self.average[name] = decay * self.average.get(name, 0.0) + (1 - decay) * value

    def _values(self) -> dict[str, torch.Tensor]:
        return {
            name: value.clone()
            for name, value in self.network.state_dict().items()
            if value.is_floating_point()
        }

    def gradients(self) -> dict[str, np.ndarray]:
        return {
            f"gradient {name}": value.grad.numpy().copy()
            for name, value in self.network.named_parameters()
        }

    def everything(self) -> dict[str, np.ndarray]:
        buffers = {
            name: self.optimizer.state[value]["momentum_buffer"]
            for name, value in self.network.named_parameters()
        }
        kinds = {"value": self._values(), "momentum": buffers, "average": self.average}
        return {
            f"{kind} {name}": value.numpy()
            for kind, values in kinds.items()
            for name, value in values.items()
        }


def _training_pair(
    name: str, size: int, changes: Mapping[str, Any]
) -> tuple[nn.Module, Network, dict[str, Any], ConfigDict]:
    """A reference, ours, the variables and the config; `changes` are the model's options and, by
    dotted names, fields of the config.
    """
    options = {option: value for option, value in changes.items() if "." not in option}
    fields = {field: value for field, value in changes.items() if "." in field}
    options |= {"dropout": 0.0} | ({"aux_dropout": 0.0} if name in WITH_AUX_DROPOUT else {})
    network, model, variables = make_pair(name, num_classes=10, **options)
    config = make_config(name, size, options, fields)
    assert build_model(config, 10) == model
    return network, model, variables, config


def _batches(pictures: np.ndarray, batch_size: int, steps: int) -> list[dict[str, np.ndarray]]:
    batches = []
    for step in range(steps):
        chosen = (np.arange(batch_size) * 5 + step) % len(pictures)
        batches.append(
            {"image": pictures[chosen], "label": ((chosen * 7 + step) % 10).astype(np.int32)}
        )
    return batches


def training_errors(
    name: str, size: int, batch_size: int = BATCH_SIZE, steps: int = 10, **changes: Any
) -> dict[str, float]:
    """Trains both sides on the same batches; `changes` are the model's options and, by dotted
    names, fields of the config.

    Returns relative errors by name: "loss_main step 3", … of every step; "gradient
    conv1.conv.weight", … of the first; "value …", "momentum …" and "average …" after the last.
    """
    network, model, variables, config = _training_pair(name, size, changes)
    ours, theirs = Ours(model, variables, config), Theirs(network, config)
    errors: dict[str, float] = {}
    for step, batch in enumerate(_batches(images(size, 2 * batch_size), batch_size, steps)):
        mine, torchs = ours.train(batch), theirs.train(batch)
        errors |= {f"{key} step {step}": error for key, error in compare(mine, torchs).items()}
        if step == 0:
            errors |= compare(
                ours.gradients(config.optimizer.weight_decay, variables["params"]),
                theirs.gradients(),
            )
    return errors | compare(ours.everything(), theirs.everything())


def drift(
    name: str, size: int, batch_size: int = BATCH_SIZE, steps: int = 10, **changes: Any
) -> list[tuple[float, float]]:
    """How far apart two trainings are after each step; the arguments are those of
    `training_errors`.

    Returns for each step before the control reaches DRIFT_LIMIT (ours, control): our distance from
    PyTorch, and the largest of DRIFT_CONTROLS distances of PyTorch from itself after `nudge`. A
    distance is the largest relative error of any parameter, statistic, momentum or average.
    """
    network, model, variables, config = _training_pair(name, size, changes)
    others = [copy.deepcopy(network) for _ in range(DRIFT_CONTROLS)]
    for seed, other in enumerate(others):
        nudge(other, seed)
    runs = [Ours(model, variables, config), *(Theirs(other, config) for other in others)]
    theirs = Theirs(network, config)
    distances = []
    # Not `images`: on maps of one value a plain sum, as XLA's are, rounds every addition to the
    # same side, and PyTorch's cascaded one does not, which the control knows nothing of.
    for batch in _batches(photographs(size, 2 * batch_size), batch_size, steps):
        theirs.train(batch)
        expected = theirs.everything()
        for run in runs:
            run.train(batch)
        mine, *controls = (max(compare(run.everything(), expected).values()) for run in runs)
        if max(controls) >= DRIFT_LIMIT:
            break
        distances.append((mine, max(controls)))
    return distances
