"""Makes the parity tables: our networks beside their PyTorch references in float64, the largest
relative error by model and kind.

python -m proofs parity        # writes docs/parity.md and prints its rows as JSON; half an hour on 2 cores

What is measured is kept in --state (default: parity.json in the temporary folder), so that an
interrupted run goes on where it stopped; delete that file after a change of the code.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
from flax import traverse_util

from googlenet_jax.verification.reference import NETWORKS
from tests.parity.harness import (
    BATCH_SIZE,
    DRIFT_CONTROLS,
    DRIFT_FACTOR,
    DRIFT_LIMIT,
    LEARNING_RATE,
    TOLERANCE,
    drift,
    endpoint_errors,
    training_errors,
)

ROOT = Path(__file__).resolve().parents[1]

SIZES = (224, 225, 231, 97)
# The configs of configs/ by network; the others are shown at a common rate.
CONFIGS = {
    "googlenet": ("imagenet_googlenet",),
    "googlenet_bn": ("digits", "cifar10", "imagenet_googlenet_bn"),
}
CONFIG_FIELDS = (
    *(
        "schedule.learning_rate",
        "optimizer.momentum",
        "optimizer.nesterov",
        "optimizer.weight_decay",
        "optimizer.bias_rate_multiplier",
    ),
    *("loss.aux_weight", "loss.label_smoothing"),
)
COMMON_RATE = 0.01
DRIFT_STEPS = 10
KINDS = (
    "endpoints and logits",
    "losses",
    "gradients",
    "parameters and statistics",
    "momenta",
    "averages",
)
_PREFIXES = {
    "loss": 1,
    "loss_main": 1,
    "loss_aux1": 1,
    "loss_aux2": 1,
    "gradient": 2,
    "value": 3,
    "momentum": 4,
    "average": 5,
}

TEXT = """# Parity with PyTorch

Made by `python -m proofs parity` (jax {jax}, torch {torch}, CPU, float64). Each entry is the largest ‖ours − PyTorch's‖₂ / ‖PyTorch's‖₂
over all tensors of its kind; the tests hold every one to {tolerance:.0e}. The references, in
`googlenet_jax/verification/reference/`, are written from the papers' and the frameworks' facts, not from this project's code.

- Endpoints and the logits of all heads: evaluation at {sizes} pixels, on a real digit, an 8-level quantised and a constant image, with
  random biases, scales and running statistics.
- The rest: ten steps of the project's own train step at 64 pixels, batches of {batch} such images, beside PyTorch's SGD; losses of every
  step, gradients of the first, everything else after the last. Weight decay, momentum, a stepped rate and a Polyak average act; dropout
  and flips are off. The rate, {rate:g}, is one at which rounding is not amplified beyond the tolerance; the second table has the configs'.
- Endpoints are those of the published widths, the rest of a quarter of them (`width=0.25`).

| model | {kinds} |
|---|{rules}
{rows}

## At the configs' own rates

Training amplifies rounding, the more the higher the rate, so a fixed tolerance means little there. The control is PyTorch itself:
{controls} more runs of the reference, each with every weight moved by one unit in the last place, up or down at random, before the first
step. Our distance from PyTorch (the largest relative error of any parameter, statistic, momentum or average) must be at most {factor} times
the largest of their {controls} distances after every step before that reaches {limit:.0e}; beyond, single ReLUs and pools fall to
another side in one run and not in the others, and one such fall outweighs all rounding. Both are given after the last such step.
Rate, momentum, weight decay, label smoothing and the auxiliary weight are the
config's, at its highest rate throughout; batches of {batch} squares of photographs at its size, at most 64 pixels; its width where it
sets one, else a quarter. (On the first table's images ours was 20 times the control's after the first step of `googlenet_bn` on the digits'
config: over maps of one value a plain sum, as XLA's are, rounds every addition to the same side, PyTorch's cascaded one does not.)

| model | config | rate | steps compared, of {steps} | our distance | the control's largest | largest ratio after any step |
|---|---|---|---|---|---|---|
{drifts}
"""


def measure(name: str) -> dict[str, float]:
    """Returns the largest relative error of each kind for a network."""
    worst = dict.fromkeys(KINDS, 0.0)
    for size in SIZES:
        worst[KINDS[0]] = max(worst[KINDS[0]], *endpoint_errors(name, size).values())
    for entry, error in training_errors(name, 64, width=0.25).items():
        if entry.split()[0] in _PREFIXES:
            kind = KINDS[_PREFIXES[entry.split()[0]]]
            worst[kind] = max(worst[kind], error)
    return worst


def recipe_changes(config: str) -> dict[str, Any]:
    """What of a config in configs/ decides how training goes, as `drift` takes it."""
    spec = importlib.util.spec_from_file_location(config, ROOT / "configs" / f"{config}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    options = {
        option: value
        for option, value in config.model.options.items()
        if option in ("width", "stem")
    }
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    return {
        **options,
        **{field: flat[field] for field in CONFIG_FIELDS},
        "size": min(config.preprocessing.size, 64),
    }


def measure_drift(name: str, config: str | None) -> dict[str, Any]:
    """Returns a row of the second table."""
    changes = (
        recipe_changes(config) if config else {"schedule.learning_rate": COMMON_RATE, "size": 64}
    )
    changes = {"width": 0.25, "schedule.factor": 1.0, **changes}
    distances = drift(name, changes.pop("size"), steps=DRIFT_STEPS, **changes)
    return {
        "rate": changes["schedule.learning_rate"],
        "steps": len(distances),
        "ours": distances[-1][0],
        "control": distances[-1][1],
        "ratio": max(ours / control for ours, control in distances),
    }


def render(table: dict[str, dict[str, float]], drifts: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"| `{name}` | " + " | ".join(f"{errors[kind]:.1e}" for kind in KINDS) + " |"
        for name, errors in table.items()
    ]
    drift_rows = [
        "| `{}` | {} | ".format(*key.split())
        + "{rate:g} | {steps} | {ours:.1e} | {control:.1e} | {ratio:.1f} |".format(**row)
        for key, row in drifts.items()
    ]
    facts: dict[str, Any] = {
        "jax": jax.__version__,
        "torch": torch.__version__.split("+")[0],
        "sizes": ", ".join(map(str, SIZES)),
    }
    facts |= {
        "tolerance": TOLERANCE,
        "batch": BATCH_SIZE,
        "rate": LEARNING_RATE,
        "steps": DRIFT_STEPS,
    }
    facts |= {"controls": DRIFT_CONTROLS, "factor": DRIFT_FACTOR, "limit": DRIFT_LIMIT}
    facts |= {"kinds": " | ".join(KINDS), "rules": "---|" * len(KINDS)}
    return TEXT.format(**facts, rows="\n".join(rows), drifts="\n".join(drift_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "parity.json")
    state_file = parser.parse_args().state
    jax.config.update("jax_enable_x64", True)
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    pairs = [(name, config) for name in NETWORKS for config in CONFIGS.get(name, (None,))]
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        f"drift {n} {r or '–'}": lambda n=n, r=r: measure_drift(n, r) for n, r in pairs
    }
    tasks |= {f"errors {n}": lambda n=n: measure(n) for n in NETWORKS}
    for key, task in tasks.items():
        if key not in state:
            state[key] = task()
            state_file.write_text(json.dumps(state))
        print(json.dumps({"row": key, **state[key]}), flush=True)
    table = {name: state[f"errors {name}"] for name in NETWORKS}
    drifts = {
        key.removeprefix("drift "): row for key, row in state.items() if key.startswith("drift ")
    }
    if any(error > TOLERANCE for errors in table.values() for error in errors.values()):
        sys.exit(f"an entry exceeds {TOLERANCE:.0e}: docs/parity.md is left as it was")
    if any(row["ratio"] > DRIFT_FACTOR for row in drifts.values()):
        sys.exit(
            f"a distance exceeds {DRIFT_FACTOR} times its control: docs/parity.md is left as it was"
        )
    (ROOT / "docs" / "parity.md").write_text(render(table, drifts), encoding="utf-8")


if __name__ == "__main__":
    main()
