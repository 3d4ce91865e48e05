"""Two networks side by side: whether they are equal, where they part, and why."""

import dataclasses
import inspect
import platform
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_name, model_options, option_defaults
from googlenet_jax.runtime.versions import versions
from googlenet_jax.verification import reference as references
from googlenet_jax.verification import training
from googlenet_jax.verification.align import Alignment, align, roles_of, units_of
from googlenet_jax.verification.edits import apply
from googlenet_jax.verification.explain import Explainer, Explanation
from googlenet_jax.verification.from_jax import in_float64
from googlenet_jax.verification.graph import Graph, evaluated
from googlenet_jax.verification.naming import Finding
from googlenet_jax.verification.rows import EPSILON, Pairing, Row, difference, rounding
from googlenet_jax.verification.sides import JaxSide, Side, TorchSide, as_side, network_side
from googlenet_jax.verification.transfer import (
    Move,
    code_of,
    moved,
    moves,
    random_leaves,
    random_variables,
)

DTYPES = ("float64", "float32", "bfloat16")
WEIGHTS = ("random", "reference", "candidate", "own")
EQUAL, ROUNDING, DIFFERENT = "equal", "equal to rounding", "different"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found; `assert report.equal, report` says it all in a test.

    Attributes:
      verdict: "equal" to the last bit; "equal to rounding"; "different". It goes by the outputs.
      outputs: of both, end to end. rows: each segment given what the candidate recorded before it.
      findings: what explains rows that part, each tested. unexplained: (row, place) for the rest.
      after: the outputs with all findings applied to the reference.
      tried: how many sets of rewrites were applied. training: losses, gradients, and after the
        steps parameters, momenta and statistics; training_findings: what explains these.
      alignment: which layer is which. moves: where each of the candidate's weights came from.
      stuck: kernels that could not be moved to, and why. not_compared: outputs of one side alone,
        and what else was left out. about: titles, dtype, versions, hardware.
    """

    verdict: str
    outputs: list[Row]
    rows: list[Row]
    findings: list[Finding]
    unexplained: list[tuple[Row, str]]
    after: list[Row]
    tried: int
    training: list[Any]
    training_findings: list[Finding]
    alignment: Alignment
    moves: list[Move]
    stuck: dict[str, str]
    not_compared: list[str]
    about: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether outputs, and training where it was compared, are equal to rounding."""
        return self.verdict != DIFFERENT

    @property
    def first(self) -> Row | None:
        """The first segment that parts."""
        return next((row for row in self.rows if row.parted), None)

    def conversion(self) -> str:
        """The function that makes the candidate's weights of the reference's, as code."""
        return code_of(self.moves, f"{self.about['reference']} → {self.about['candidate']}")

    def __str__(self) -> str:
        from googlenet_jax.verification.report import text

        return text(self)


def reference_of(model: Network) -> nn.Module:
    """The PyTorch reference of a network, with the model's options.

    Raises UserError for a network without one, and for options that it does not have.
    """
    name, options = model_name(model), model_options(model)
    classes: Mapping[str, Any] = references.NETWORKS | references.INCEPTIONS
    if name not in classes:
        raise UserError(
            f"--against torch: there is no PyTorch reference of {name}; name your own as"
            " FILE.py:NAME"
        )
    names = {"bn_epsilon": "eps"}
    takes = inspect.signature(classes[name]).parameters
    flavour = {"flavour": options["flavour"]} if "flavour" in options else {}
    defaults = model_options(type(model)(**_of_flavour(model, flavour)))
    given = {}
    for option, value in options.items():
        of_candidate = names.get(option, option)
        if of_candidate in takes:
            given[of_candidate] = value
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


def default_images(size: int, seed: int = 0) -> np.ndarray:
    """Images [4, size, size, 3], float64, as if normalised: noise, a coarse pattern of few values
    (in which pools find ties), a gradient and a constant.
    """
    generator = np.random.default_rng(seed)
    shades = np.array([1.0, 0.8, 0.55])  # so that the channels differ
    coarse = np.kron(generator.integers(-2, 3, (8, 8)), np.ones((-(-size // 8), -(-size // 8))))
    rows, columns = np.mgrid[-1.5 : 1.5 : size * 1j, -1.0 : 2.0 : size * 1j]
    return np.stack(
        [
            generator.normal(0, 1, (size, size, 3)),
            coarse[:size, :size, None] * shades,
            (rows * columns + rows)[..., None] * shades,
            np.full((size, size, 3), 0.75) * shades,
        ]
    )


def verify(
    reference: Any,
    candidate: Any,
    inputs: Any,
    *,
    weights: str = "random",
    pairs: Mapping[str, str] | None = None,
    steps: int = 0,
    dtype: str = "float64",
    seed: int = 0,
    log: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compares a candidate (a port, say) with a reference.

    Args:
      reference, candidate: each a `torch.nn.Module`, (function, parameters), (linen module,
        variables), an Equinox, NNX or Keras model, or a `TrainedModel`; functions take (parameters,
        inputs). A torch module's weights are overwritten unless `weights` is "own".
      inputs: floats [N, H, W, C], or [N, …] of another rank as both sides take them; at least two,
        and such that faults show: noise, not zeros.
      weights: "random": the reference gets random ones, the candidate the same; "reference": the
        candidate gets the reference's; "candidate": the other way round; "own": each keeps its own.
      pairs: {the reference's kernel: the candidate's}, not to be questioned; see `transfer`.
      steps: of SGD beside each other, 0 for none.
      dtype: of both sides: "float64", in which only logic can differ, "float32" or "bfloat16".
      log: is told what goes on.
    Raises:
      UserError: a side can't be run, or the two have nothing in common.
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise UserError(f"--{name}: expected one of {', '.join(known)}, found {value!r}")
    images = np.asarray(inputs, "float64")
    if images.ndim < 2 or len(images) < 2:
        raise UserError(
            f"inputs: expected at least two examples [N, …], found shape {list(images.shape)}"
        )
    with in_float64():
        sides = as_side(reference, dtype), as_side(candidate, dtype)
        return _Verification(*sides, images, weights, dict(pairs or {}), dtype, seed, log).run(
            steps
        )


@dataclasses.dataclass
class _Verification:
    """One comparison under way."""

    reference: Side
    candidate: Side
    images: np.ndarray
    weights: str
    pairs: dict[str, str]
    dtype: str
    seed: int
    log: Callable[[str], None]

    def __post_init__(self) -> None:
        precisions = self.reference.precision, self.candidate.precision
        self.precision = max(precisions, key=EPSILON.__getitem__)
        self.moves: list[Move] = []
        self.stuck: dict[str, str] = {}

    def run(self, steps: int) -> Report:
        """See `verify`."""
        self.log("reading both sides' operations")
        one, of_reference = self.reference.trace(self.images)
        other, of_candidate = self.candidate.trace(self.images)
        if self.weights == "random" and not getattr(self.reference, "random", False):
            self.reference.assign(random_leaves(one, self.seed))
            one, of_reference = self.reference.trace(self.images)
        alignment = self._align(one, other)
        if self.weights == "candidate":
            flipped = _flipped(alignment)
            self.moves, self.stuck = moves(flipped, other, one, self.reference.layouts)
            self.reference.assign(moved(self.moves, other.leaves, one.leaves))
            one, of_reference = self.reference.trace(self.images)
            alignment = dataclasses.replace(alignment, reference=units_of(one))
        elif self.weights != "own":
            self.moves, self.stuck = moves(alignment, one, other, self.candidate.layouts)
            self.candidate.assign(moved(self.moves, one.leaves, other.leaves))
            other, of_candidate = self.candidate.trace(self.images)
            alignment = self._again(alignment, one, other)
        self.log("comparing outputs, then segment by segment")
        return self._report(one, of_reference, other, of_candidate, alignment, steps)

    def _align(self, one: Graph, other: Graph) -> Alignment:
        names = getattr(self.reference, "names", {})
        found = align(one, other, names, self.pairs)
        shared = [
            r
            for r, c in found.pairs.items()
            if found.reference[r].shape == found.candidate[c].shape
        ]
        if not shared:
            raise UserError(
                f"none of the {len(found.candidate)} convolutions and fully connected layers of "
                f"{self.candidate.title} has the shape of one of {self.reference.title}'s; "
                "make both with the same options (width, number of classes)"
            )
        return found

    def _again(self, alignment: Alignment, one: Graph, other: Graph) -> Alignment:
        """The alignment for the run with the weights moved: layers run in the same order again."""
        units = units_of(other)
        if [u.shape for u in units] != [u.shape for u in alignment.candidate]:
            return self._align(one, other)
        return dataclasses.replace(alignment, candidate=units)

    def _report(
        self,
        one: Graph,
        of_reference: dict[str, Tensor],
        other: Graph,
        of_candidate: dict[str, Tensor],
        alignment: Alignment,
        steps: int,
    ) -> Report:
        outputs = matched_outputs(of_reference, of_candidate)
        pairing = Pairing(one, other, alignment, self.precision, outputs)
        pairing.compare()
        rows = _output_rows(of_reference, of_candidate, outputs, pairing.bound)
        faithful = _faithful(one, of_reference, pairing.bound)
        found = Explanation([], [], [], 0)
        parted = any(row.parted for row in rows)
        after: list[Row] = []
        if parted:
            self.log("they part; applying what differs to the reference, piece by piece")
            explainer = Explainer(pairing)
            found = explainer.run()
            after = self._after(explainer, found, of_candidate, outputs, pairing.bound)
        trained, why = self._trained(one, alignment, outputs, steps if not parted else 0)
        parted = parted or any(row.parted for row in trained)
        verdict = DIFFERENT if parted else ROUNDING
        if not any(row.largest for row in rows) and not any(row.largest for row in trained):
            verdict = EQUAL
        alone = [f"the reference's output {n}" for n in of_reference if n not in outputs]
        alone += [f"the candidate's output {n}" for n in of_candidate if n not in outputs.values()]
        alone += faithful
        alone += [] if trained else ["training"]
        if still := training.frozen_in(self.candidate):
            alone.append(f"gradients of {len(still)} frozen parameters")
        return Report(
            verdict,
            rows,
            pairing.rows,
            _grouped(found.findings, pairing),
            found.unexplained,
            after,
            found.tried,
            trained,
            why,
            alignment,
            self.moves,
            self.stuck,
            alone,
            self._about(),
        )

    def _trained(
        self, one: Graph, alignment: Alignment, outputs: Mapping[str, str], steps: int
    ) -> tuple[list[training.TrainingRow], list[Finding]]:
        """Rows of training and what explains them."""
        table = self.moves
        if self.weights in ("own", "candidate") or not steps or not table:
            return [], []
        self.log(f"training both sides, {steps} step{'s' if steps > 1 else ''}")
        classes = [one.outputs[name].shape[-1] for name in outputs]
        generator = np.random.default_rng(self.seed)
        count = max(len(self.images), 8)
        images = generator.normal(0, 1, (count, *self.images.shape[1:]))
        labels = generator.integers(0, min(classes), (steps, count))
        sides = self.reference, self.candidate
        whole = all(map(training.can_train, sides))
        frozen = training.frozen_in(self.candidate)
        still = frozenset(m.source for m in table if m.target in frozen)
        before = {name: value.double() for name, value in one.leaves.items()}
        mine = training.train(self.reference, images, labels, list(outputs), whole, still)
        names = list(outputs.values())
        of_candidate, *controls = (
            training.train(self.candidate, images, labels, names, whole, nudge=nudge)
            for nudge in (None, *range(training.CONTROLS))
        )
        means = _running(one)
        statistics = frozenset([*means, *means.values()]) if whole else frozenset()
        forward = rounding(alignment.reference, self.precision)
        rows = training.compare_training(mine, of_candidate, controls, table, forward, statistics)
        if not any(row.parted for row in rows) or not whole:
            return rows, []
        momentum = _momentum(self.reference)
        if momentum is None:
            return rows, []
        bound = training.MARGIN**3 * forward
        return rows, training.statistics_findings(
            before, mine, of_candidate, table, means, momentum, bound
        )

    def _after(
        self,
        explainer: Explainer,
        found: Explanation,
        of_candidate: Mapping[str, Tensor],
        outputs: Mapping[str, str],
        bound: float,
    ) -> list[Row]:
        """The outputs, end to end, of the reference with all findings in it."""
        graph = apply(explainer.pairing.reference, found.edits, explainer.matched)
        assert graph.input.value is not None
        given = {id(graph.input): graph.input.value}
        rows = []
        for name, other in outputs.items():
            made = evaluated(graph.outputs[name], given)
            value = of_candidate[other]
            flat = (
                None if made is None or made.numel() != value.numel() else made.reshape(value.shape)
            )
            relative, largest = difference(flat, value)
            rows.append(Row(name, "output", relative, relative, largest, bound))
        return rows

    def _about(self) -> dict[str, Any]:
        return {
            "reference": self.reference.title,
            "candidate": self.candidate.title,
            "inputs": list(self.images.shape),
            "dtype": self.dtype,
            "weights": self.weights,
            "seed": self.seed,
            "versions": versions(("jax", "flax", "torch", "numpy")),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }


def _flipped(alignment: Alignment) -> Alignment:
    """The alignment seen from the candidate."""
    pairs = {c: r for r, c in alignment.pairs.items()}
    how = {c: alignment.how[r] for r, c in alignment.pairs.items()}
    return Alignment(alignment.candidate, alignment.reference, pairs, how)


def _running(graph: Graph) -> dict[str, str]:
    """Running variances → the running means beside them."""
    found = {}
    for node in graph.nodes():
        if node.op == "affine":
            leaves = roles_of(node, graph.leaves).leaves
            if "var" in leaves and "mean" in leaves:
                found[leaves["var"]] = leaves["mean"]
    return found


def _momentum(side: Side) -> float | None:
    """How much of a batch running statistics take."""
    model = getattr(side, "model", None)
    if model is not None and hasattr(model, "bn_momentum"):
        return 1 - model.bn_momentum
    if isinstance(side, TorchSide):
        norms = [m for m in side.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return norms[0].momentum if norms else None
    return None


def matched_outputs(
    of_reference: Mapping[str, Tensor], of_candidate: Mapping[str, Tensor]
) -> dict[str, str]:
    """The reference's outputs → the candidate's, by name, then by place."""
    found = {name: name for name in of_reference if name in of_candidate}
    rest = [n for n in of_reference if n not in found], [n for n in of_candidate if n not in found]
    if not found or (len(rest[0]) == len(rest[1]) == 1):
        found |= dict(zip(*rest, strict=False))
    return found


def _output_rows(
    of_reference: Mapping[str, Tensor],
    of_candidate: Mapping[str, Tensor],
    outputs: Mapping[str, str],
    bound: float,
) -> list[Row]:
    rows = []
    for name, other in outputs.items():
        one, two = of_reference[name], of_candidate[other]
        shapes = tuple(one.shape), tuple(two.shape)
        if one.ndim == two.ndim == 4 and shapes[0] != shapes[1]:
            two = two.permute(0, 2, 3, 1) if one.shape == two.permute(0, 2, 3, 1).shape else two
        one = one.reshape(len(one), -1) if one.numel() == two.numel() else one
        two = two.reshape(len(two), -1) if one.numel() == two.numel() else two
        relative, largest = difference(one, two)
        rows.append(Row(name, "output", relative, relative, largest, bound, *shapes))
    return rows


def _faithful(graph: Graph, real: Mapping[str, Tensor], bound: float) -> list[str]:
    """Outputs whose graph does not give what the network itself gave, in words."""
    found = []
    for name, value in real.items():
        node = graph.outputs[name]
        made = node.value if node.value is not None else node.inputs[0].value
        if made is None or made.numel() != value.numel():
            continue
        if difference(made.reshape(value.shape), value)[0] > bound:
            found.append(f"segments before {name}: the graph does not give what the network does")
    return found


# Faults that every layer with such an operation could have.
_EVERYWHERE = {
    "BN epsilon": "affine",
    "missing batch norm scale": "affine",
    "missing ReLU": "act",
    "activation": "act",
}


def _grouped(findings: list[Finding], pairing: Pairing) -> list[Finding]:
    """The same fault in every layer that could have it is one finding, of layer ""."""
    readers = pairing.reference.consumers()
    result: list[Finding] = []
    for finding in findings:
        alike = {f.layer for f in findings if (f.name, f.detail) == (finding.name, finding.detail)}
        op = _EVERYWHERE.get(finding.name)
        if op and len(alike) > 2:
            units = pairing.alignment.reference
            could = {unit.name for unit in units if op in _chain_of(unit.node, readers)}
            if could <= alike or (op == "affine" and len(alike) >= _norms_in(pairing)):
                finding = dataclasses.replace(finding, layer="")
        if finding not in result:
            result.append(finding)
    return result


def _chain_of(node: Any, readers: Mapping[int, list[Any]]) -> list[str]:
    found: list[str] = []
    while True:
        above = readers.get(id(node), [])
        if len(above) != 1 or above[0].op not in ("affine", "act", "dropout"):
            return found
        node = above[0]
        found.append(node.op)


def _norms_in(pairing: Pairing) -> int:
    """How many layers have a batch norm."""
    leaves = pairing.reference.leaves
    nodes = [n for n in pairing.reference.nodes() if n.op == "affine"]
    return sum("var" in roles_of(n, leaves).leaves for n in nodes)


def own_network(
    model: Network, variables: Mapping[str, Any] | None, size: int, dtype: str, seed: int
) -> JaxSide:
    """One of this package's networks as a side; with random weights where `variables` is None."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    random = variables is None
    given = random_variables(model, size, "float64", seed) if random else variables
    side = network_side(model, given, dtype)  # type: ignore[arg-type]
    side.random = random  # type: ignore[attr-defined]
    return side
