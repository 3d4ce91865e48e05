"""What a user hangs into the loop: at its four places, evaluate → save → next batch → step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from googlenet_jax.errors import UserError, naming
from googlenet_jax.registry import Registry, arguments
from googlenet_jax.training.state import TrainState

Line = Mapping[str, Any]


class Callback:
    """Does nothing; one of a user's overrides some of it.

    Each method may return True, and the run ends after it has saved; all processes of several call
    them, and have to answer alike. A state is valid during the call alone: the next step uses it
    up.
    """

    def started(self, step: int, lines: Sequence[Line]) -> bool | None:
        """The run begins, or is resumed after `step` steps; `lines` are its evaluations so far."""

    def evaluated(self, step: int, state: TrainState, lines: Sequence[Line]) -> bool | None:
        """After `step` steps every split was evaluated: a line for each, of both weights."""

    def saved(self, step: int, state: TrainState) -> bool | None:
        """The checkpoint of `step` is being written."""

    def batch(self, step: int, batch: Mapping[str, Any]) -> bool | None:
        """The host's batch of the step after `step` steps, this process's share, is about to be
        used.
        """

    def stepped(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> bool | None:
        """The step that leads to `step` was begun: its state and metrics, on the devices. Reading
        them waits for the step.
        """


class Callbacks(Callback):
    """Several as one; `ended_by` names the first that has ended the run."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self.ended_by = ""

    def __len__(self) -> int:
        return len(self._callbacks)

    def started(self, step: int, lines: Sequence[Line]) -> bool:
        return self._any(lambda each: each.started(step, lines))

    def evaluated(self, step: int, state: TrainState, lines: Sequence[Line]) -> bool:
        return self._any(lambda each: each.evaluated(step, state, lines))

    def saved(self, step: int, state: TrainState) -> bool:
        return self._any(lambda each: each.saved(step, state))

    def batch(self, step: int, batch: Mapping[str, Any]) -> bool:
        return self._any(lambda each: each.batch(step, batch))

    def stepped(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> bool:
        return self._any(lambda each: each.stepped(step, state, metrics))

    def _any(self, call: Callable[[Callback], bool | None]) -> bool:
        for each in self._callbacks:
            if call(each) and not self.ended_by:
                self.ended_by = type(each).__name__
        return bool(self.ended_by)


class EarlyStopping(Callback):
    """Ends the run where a metric has not become better for `patience` evaluations in a row."""

    def __init__(
        self,
        metric: str = "loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "",
        split: str = "",
        weights: str = "",
    ) -> None:
        """
        Args:
          metric: of the evaluation lines.
          min_delta: by how much it has to become better.
          mode: "min" or "max"; by default "min" for losses and errors.
          split, weights: of the lines; by default the first split, and the average where there is
            one.
        """
        if mode not in ("", "min", "max") or patience < 1:
            raise UserError(
                "callbacks.options.early_stopping: expected a mode 'min' or 'max' and a patience"
                f" of at least 1, found {mode!r} and {patience}"
            )
        lower = mode == "min" or (not mode and ("loss" in metric or "error" in metric))
        self._sign = 1 if lower else -1
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._split, self._weights = split, weights
        self._best, self._waited = float("inf"), 0

    def started(self, step: int, lines: Sequence[Line]) -> bool:
        ends = False
        for number in sorted({line["step"] for line in lines}):
            ends = self._take([line for line in lines if line["step"] == number])
        return ends

    def evaluated(self, step: int, state: TrainState, lines: Sequence[Line]) -> bool:
        return self._take(lines)

    def _take(self, lines: Sequence[Line]) -> bool:
        split = self._split or lines[0]["split"]
        found = [line for line in lines if line["split"] == split]
        found = [line for line in found if self._weights in ("", line["weights"])]
        if not found or self._metric not in found[-1]:
            raise UserError(
                f"callbacks.options.early_stopping: no {self._metric!r} in the lines of {split!r}"
            )
        value = self._sign * found[-1][self._metric]
        if value < self._best - self._min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited >= self._patience


CALLBACKS: Registry[Callable[..., Callback]] = Registry(
    "callback", {"early_stopping": EarlyStopping}
)
register_callback = CALLBACKS.register


def create_callbacks(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]], own: Sequence[Callback] = ()
) -> Callbacks:
    """Returns the registered callbacks of these names with their options, and `own`.

    Raises UserError for a name that is not registered, or options that can't be.
    """
    made = create_named(CALLBACKS, "callbacks", names, options)
    return Callbacks([*(each() for each in made.values()), *own])


def create_named(
    registry: Registry[Any],
    group: str,
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    given: Sequence[str] = (),
) -> dict[str, Callable[..., Any]]:
    """Returns the registered factories of these names, each with its options set.

    Args:
      group: the config's, which has `names` and `options` by name.
      given: parameters that the caller gives.
    Raises:
      UserError: a name that is not registered, options of none of them, or that one doesn't take.
    """
    for name in options:
        if name not in names:
            raise UserError(f"{group}.options.{name}: it is none of {group}.names, {tuple(names)}")
    found: dict[str, Callable[..., Any]] = {}
    for name in names:
        with naming(f"{group}.names"):
            factory = registry[name]
        taken = arguments(factory, f"{name!r}", group, {}, options.get(name, {}), given)
        found[name] = _partial(factory, taken)
    return found


def _partial(factory: Callable[..., Any], taken: Mapping[str, Any]) -> Callable[..., Any]:
    return lambda *args: factory(*args, **taken)
