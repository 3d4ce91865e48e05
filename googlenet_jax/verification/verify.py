"""Our network beside somebody's: where they part, why, and what training makes of both."""

import contextlib
import dataclasses
import functools
import inspect
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from torch import nn

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_name, model_options, option_defaults
from googlenet_jax.runtime.versions import versions
from googlenet_jax.verification import explain, match, ours, reference, training
from googlenet_jax.verification.compare import Comparison, Row, compare
from googlenet_jax.verification.of_keras import KerasSide
from googlenet_jax.verification.ours import Fault
from googlenet_jax.verification.theirs import Theirs

DTYPES = ("float64", "float32", "bfloat16")
EQUAL, ROUNDING, DIFFERENT = "equal", "equal to rounding", "different"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
      verdict: "equal" to the last bit; "equal to rounding"; "different".
      first: where they part, None where they do not.
      faults: what explains it, each tested; see `explain.Explanation`. tried: how many were applied.
      unexplained: where they still part with all of `faults` applied; None where nowhere.
      rows: the layers in the network's order. training: losses, gradients, and after the steps
        parameters, momenta and statistics.
      match: which layer is which. not_compared: outputs that one side alone has, and training
        where it was not run. about: model, dtype, versions, hardware.
    """

    verdict: str
    first: Row | None
    faults: list[Fault]
    unexplained: Row | None
    tried: int
    rows: list[Row]
    training: list[Row]
    match: match.Match
    not_compared: list[str]
    about: dict[str, Any]

    @property
    def bound(self) -> float:
        """The loosest bound that a layer was held to."""
        return max((row.bound for row in self.rows), default=0.0)

    def sentence(self) -> str:
        """The verdict in words."""
        if self.first is None:
            if self.verdict == EQUAL:
                return "equal, to the last bit"
            worst = max(row.relative for row in self.rows)
            text = f"equal to rounding: layers differ by {worst:.1e} at most (relative), and were "
            return text + f"held to {self.bound:.1e} and less"
        text = f"different from {self.first.layer} on"
        if self.faults:
            named = ", then ".join(map(str, self.faults))
            text += f": {named}; applied to our side, the difference vanishes there"
        if self.unexplained is not None:
            text += f"{'; ' if self.faults else ': '}unexplained from {self.unexplained.layer} on"
        return text

    def covers(self) -> str:
        """What the verdict covers, in words."""
        total = len(self.match.pairs) + len(self.match.ours)
        text = f"{len(self.match.pairs)} of our {total} layers with weights are matched"
        for whose, names in (("ours", self.match.ours), ("theirs", self.match.theirs)):
            if names:
                text += f"; not matched of {whose}: {', '.join(names)}"
        if self.not_compared:
            text += f"; not compared: {', '.join(self.not_compared)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        fault = lambda f: {"fault": f.name, "layer": f.layer or "every layer", "detail": f.detail}  # noqa: E731
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "covers": self.covers(),
            "first": self.first.layer if self.first else None,
            "explanations": [{**fault(each), "tested": True} for each in self.faults],
            "unexplained": self.unexplained.layer if self.unexplained else None,
            "suspects_tried": self.tried,
            "bound": self.bound,
            "layers": [_row_dict(row) for row in self.rows],
            "training": [_row_dict(row) for row in self.training],
            "match": dataclasses.asdict(self.match),
            "about": self.about,
        }


def _row_dict(row: Row) -> dict[str, Any]:
    """JSON has no infinity: null stands for what can't be subtracted."""
    number = lambda value: float(value) if np.isfinite(value) else None  # noqa: E731
    return {
        "name": row.layer,
        "relative": number(row.relative),
        "largest": number(row.largest),
        "bound": row.bound,
        "shape": list(row.ours),
        "their_shape": list(row.theirs),
        "parted": row.parted,
    }


def reference_of(model: Network) -> nn.Module:
    """The PyTorch reference of a network, with the model's options.

    Raises UserError for a network without one, and for options that it does not have.
    """
    name, options = model_name(model), model_options(model)
    classes: Mapping[str, Any] = reference.NETWORKS | reference.INCEPTIONS
    if name not in classes:
        raise UserError(
            f"--against torch: there is no PyTorch reference of {name}; name your own as FILE.py:CLASS"
        )
    names = {"bn_epsilon": "eps"}
    takes = inspect.signature(classes[name]).parameters
    flavour = {"flavour": options["flavour"]} if "flavour" in options else {}
    defaults = model_options(type(model)(**_of_flavour(model, flavour)))
    given = {}
    for option, value in options.items():
        theirs = names.get(option, option)
        if theirs in takes:
            given[theirs] = value
        elif value != defaults[option] and "dtype" not in option and "dropout" not in option:
            raise UserError(
                f"--against torch: the reference of {name} has no {option}; leave {option} at "
                f"{defaults[option]!r}"
            )
    return classes[name](**given)


def _of_flavour(model: Network, flavour: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(flavour) | dict(model.flavours.get(flavour.get("flavour", ""), {}))
    known = option_defaults(model_name(model))
    return {name: value for name, value in fields.items() if name in known}


def default_images(size: int, count: int = 4, seed: int = 0) -> np.ndarray:
    """Images [count, size, size, 3], float64, as if normalised: in turn noise, a coarse pattern of
    few values (in which pools find ties), a gradient and a constant.
    """
    generator = np.random.default_rng(seed)
    shades = np.array([1.0, 0.8, 0.55])  # so that the channels differ
    coarse = np.kron(generator.integers(-2, 3, (8, 8)), np.ones((-(-size // 8), -(-size // 8))))
    rows, columns = np.mgrid[-1.5 : 1.5 : size * 1j, -1.0 : 2.0 : size * 1j]
    kinds = [
        lambda: generator.normal(0, 1, (size, size, 3)),
        lambda: coarse[:size, :size, None] * shades,
        lambda: (rows * columns + rows)[..., None] * shades,
        lambda: np.full((size, size, 3), 0.75) * shades,
    ]
    return np.stack([kinds[i % 4]() for i in range(count)])


def default_noise(size: int, count: int = 8, seed: int = 0) -> np.ndarray:
    """Images [count, size, size, 3] of noise, float64, as if normalised: what training is compared
    on. Over maps of one value a plain sum, as XLA's are, rounds every addition to the same side,
    PyTorch's cascaded one does not, and the backward pass of a deep network amplifies that.
    """
    return np.random.default_rng(seed).normal(0, 1, (count, size, size, 3))


def verify(
    model: Network,
    module: nn.Module | KerasSide,
    variables: Mapping[str, Any] | None = None,
    *,
    images: np.ndarray | None = None,
    size: int | None = None,
    steps: int = 1,
    dtype: str = "float64",
    keep_weights: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Puts a network of ours beside a PyTorch module.

    Both get the same weights: `variables`, random ones where none are given, or with `keep_weights`
    each its own; ours are the module's where `variables` is None then. The module is changed.

    Args:
      images: floats [N, S, S, 3], normalised; where None `default_images` of `size` (default: the
        model's own), and `default_noise` for training.
      steps: of SGD, 0 for none.
      dtype: of both sides: "float64", in which only logic can differ, "float32" or "bfloat16".
      say: is told what goes on.
    Raises:
      UserError: the module can't be run, or no layer of it fits one of ours.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    if images is None:
        size = size or model.input_size
        images, trained_on = default_images(size, seed=seed), default_noise(size, seed=seed)
    else:
        trained_on = images
    height, width = images.shape[1:3]
    if problem := model.size_problem(height, width, model.aux_heads):
        raise UserError(f"{model_name(model)}: {problem}")
    model = model.clone(dtype=dtype, param_dtype=dtype)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), _compiled_quickly():
        theirs = Theirs(module, dtype) if isinstance(module, nn.Module) else module
        pair = Pair(model, theirs, images.astype("float64"), trained_on, dtype, seed)
        return pair.verify(variables, keep_weights, steps, say)


@contextlib.contextmanager
def _compiled_quickly() -> Iterator[None]:
    """Everything runs a few times only: XLA's optimizations would take longer than they save."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


class Pair:
    """The two sides, and what both are given."""

    def __init__(
        self,
        model: Network,
        theirs: Theirs | KerasSide,
        images: np.ndarray,
        trained_on: np.ndarray,
        dtype: str,
        seed: int,
    ) -> None:
        self.model, self.theirs, self.dtype, self.seed = model, theirs, dtype, seed
        self.images, self.trained_on = (
            np.asarray(jax.numpy.asarray(each, dtype)) for each in (images, trained_on)
        )
        self.variables: Any = None
        self.match: Any = None
        self.their_trace: Any = None

    def verify(
        self,
        variables: Mapping[str, Any] | None,
        keep: bool,
        steps: int,
        say: Callable[[str], None],
    ) -> Verification:
        """See `verify`."""
        say("matching layers")
        self._pair_up(variables, keep)
        self.their_trace = self.theirs.trace(self.images)
        say("comparing layer by layer")
        now = self.compared([])
        found = explain.Explanation([], None, 0)
        if now.first is not None:
            say(f"they part at {now.first.layer}; applying suspected faults to our side")
            found = explain.explain(self.compared, self.traced, self._epsilons())
        trained: list[Row] = []
        if steps and found.left is None and isinstance(self.theirs, Theirs):
            say(f"training both sides, {steps} step{'s' if steps > 1 else ''}")
            trained, found = self._train(self.theirs, steps, found)
        first = now.first or next((row for row in trained if row.parted), None)
        return self._result(now, trained, found, first)

    def _result(
        self, now: Comparison, trained: list[Row], found: explain.Explanation, first: Row | None
    ) -> Verification:
        verdict = DIFFERENT if first is not None else ROUNDING
        if not any(row.largest for row in (*now.rows, *trained)):
            verdict = EQUAL
        theirs, mine = self.their_trace.outputs, self.traced([]).outputs
        alone = [f"our output {name}" for name in mine if name not in theirs]
        alone += [f"their output {name}" for name in theirs if name not in mine]
        alone += [] if trained else ["training"]
        return Verification(
            verdict,
            first,
            found.faults,
            found.left,
            found.tried,
            now.rows,
            trained,
            self.match,
            alone,
            self._about(),
        )

    def traced(self, faults: Sequence[Fault], until: str = "") -> ours.Trace:
        """Our run with faults."""
        return ours.trace(self.model, self.variables, self.images, faults, until)

    def compared(self, faults: Sequence[Fault], until: str = "") -> Comparison:
        """The comparison with faults on our side, up to a layer."""
        mine = self.traced(faults, until)
        return compare(mine, self.their_trace, self.match, self.theirs.precision)

    def units(self) -> dict[str, Any]:
        """Their layers by their weight's name."""
        return {unit.weight: unit for unit in self.their_trace.units}

    def _epsilons(self) -> dict[str, float]:
        units = self.units()
        given = {layer: units[weight].epsilon for layer, weight in self.match.pairs.items()}
        return {layer: value for layer, value in given.items() if value is not None}

    # ------------------------------------------------------------------ which is which, and weights

    def _pair_up(self, variables: Mapping[str, Any] | None, keep: bool) -> None:
        drawn = variables is None
        if variables is None:
            size = self.images.shape[1]
            variables = ours.draw_variables(self.model, size, self.dtype, self.seed)
        trees = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
        self.variables = jax.tree.map(lambda value: np.asarray(value, self.dtype), trees)
        calls = self.traced([]).units()
        kernels = match.kernels(self.variables, calls)
        self.their_trace = self.theirs.trace(self.images)
        pairs = match.match_layers(self.model, kernels, self.units())
        if not pairs.pairs:
            raise UserError(
                f"--against: none of the module's {len(self.units())} convolutions and fully "
                f"connected layers has the shape of one of {model_name(self.model)}'s; "
                "give the options that it was made with (--option width=…, --option num_classes=…)"
            )
        settle = functools.partial(self._settle, keep=keep, own=drawn, place=list(kernels))
        self.match = match.by_numbers(pairs, kernels, settle)
        settle(self.match)

    def _settle(
        self, pairs: match.Match, keep: bool, own: bool, place: list[str]
    ) -> tuple[int, float]:
        """Gives both sides their weights under a match; says how far they then agree."""
        units = self.units()
        if not keep:
            self.theirs.push(match.their_values(self.variables, pairs, units))
            self.their_trace = self.theirs.trace(self.images)
        elif own:
            entries = match.our_entries(self.variables, pairs, units, self.theirs.pull())
            self.variables = match.filled(self.variables, entries)
        self.match = pairs
        first = self.compared([]).first
        if first is None or not first.unit:
            return len(place), 0.0
        return place.index(first.unit), -min(first.relative, 1e9)

    # ------------------------------------------------------------------------------------- training

    def _train(
        self, theirs: Theirs, steps: int, found: explain.Explanation
    ) -> tuple[list[Row], explain.Explanation]:
        """The rows as the two are, and the explanation of what training alone shows."""
        generator = np.random.default_rng(self.seed)
        labels = generator.integers(0, self.model.num_classes, (steps, len(self.trained_on)))
        heads = [name for name in self.traced([]).outputs if name in self.their_trace.outputs]
        units = self.units()

        def their_side(side: Theirs) -> training.Arrays:
            arrays = training.train_theirs(side, self.trained_on, labels, steps, heads)
            return training.under_our_names(arrays, self.variables, self.match, units)

        forward = max(row.bound for row in self.compared([]).rows)
        expected = their_side(theirs)
        nudged = (training.nudged(theirs, seed) for seed in range(training.CONTROLS))
        controls = [their_side(each) for each in nudged]

        def trained(faults: Sequence[Fault]) -> list[Row]:
            arrays = training.train_ours(
                self.model, self.variables, self.trained_on, labels, steps, heads, faults
            )
            return training.compare_training(arrays, expected, controls, forward)

        rows = trained([])
        after = trained(found.faults) if found.faults else rows
        left = next((row for row in after if row.parted), None)
        if left is None:
            return rows, found
        return rows, self._explain_training(trained, after, found)

    def _explain_training(
        self,
        trained: Callable[[Sequence[Fault]], list[Row]],
        rows: list[Row],
        found: explain.Explanation,
    ) -> explain.Explanation:
        """What shows in training alone: the running variance's definition."""
        parted = [row.layer for row in rows if row.parted]
        faults, tried = list(found.faults), found.tried
        norm: Any = self.model.norm
        ending = "/bn/var"
        if norm is not None and all(name.endswith(ending) for name in parted):
            layers = [name.removeprefix("statistic ").removesuffix(ending) for name in parted]
            for suspected in explain.biased_variance(layers, self._unbiased()):
                tried += len(suspected)
                if not any(row.parted for row in trained([*faults, *suspected])):
                    return explain.Explanation([*faults, *suspected], None, tried)
        left = next(row for row in rows if row.parted)
        return explain.Explanation(faults, left, tried)

    def _unbiased(self) -> bool:
        """Whether our running variances are the unbiased ones."""
        norms = [c.module.norm for c in self.traced([]).calls if getattr(c.module, "norm", None)]
        return norms[0].unbiased

    def _about(self) -> dict[str, Any]:
        other = "torch" if isinstance(self.theirs, Theirs) else "keras"
        packages = ("googlenet-jax", "jax", "flax", other, "numpy")
        return {
            "model": model_name(self.model),
            "options": model_options(self.model),
            "against": type(self.theirs.module).__name__,
            "dtype": self.dtype,
            "their precision": self.theirs.precision,
            "images": list(self.images.shape),
            "seed": self.seed,
            "versions": {"python": platform.python_version()} | versions(packages),
            "hardware": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        }
