"""Makes the parity table of the Inception family: ours beside the PyTorch references in float64,
flavour by flavour.

python -m proofs parity_inception        # writes docs/parity-inception.md and prints its rows as JSON; ten minutes on 2 cores

What is measured is kept in --state, so that an interrupted run goes on where it stopped; delete
that file after a change of the code.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import torch

from tests.parity.harness import TOLERANCE, endpoint_errors, training_errors
from tests.parity.test_inceptions import RATE, zero_gradients_apart

ROOT = Path(__file__).resolve().parents[1]

WIDTH = 0.125
KINDS = {
    "endpoints and logits": (),
    "losses": ("loss", "loss_main", "loss_aux1"),
    "gradients": ("gradient",),
    "parameters and statistics": ("value",),
    "momenta": ("momentum",),
    "averages": ("average",),
}
NO_AUX = {"aux_heads": False}
# Model, options, the sizes of the endpoints, and the size, batch and steps of the training.
CASES: tuple[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, int, int]], ...] = (
    ("bn_inception", {"flavour": "paper"}, (224, 97), (64, 12, 10)),
    ("bn_inception", {"flavour": "port"}, (224, 31), (64, 12, 10)),
    ("bn_inception", {"flavour": "slim"}, (139,), (64, 12, 10)),
    ("inception_v2", {}, (299,), (299, 4, 2)),
    ("inception_v2", NO_AUX, (139, 75), (75, 12, 10)),
    ("inception_v3", {"flavour": "torchvision", "transform_input": True}, (299,), (299, 4, 2)),
    ("inception_v3", {"flavour": "torchvision", **NO_AUX}, (224, 75), (75, 12, 10)),
    ("inception_v3", {"flavour": "slim", **NO_AUX}, (299,), (75, 12, 10)),
    ("inception_v3", {"flavour": "keras"}, (139,), (75, 12, 10)),
    ("inception_v3", {"flavour": "fid"}, (224,), (75, 12, 10)),
)

TEXT = """# Parity of the Inception family with PyTorch

Made by `python -m proofs parity_inception` (jax {jax}, torch {torch}, CPU, float64), as [parity.md](parity.md) is: the largest
‖ours − PyTorch's‖₂ / ‖PyTorch's‖₂ over all tensors of a kind, held to {tolerance:.0e}. Endpoints are compared at the sizes named; training
is the project's own step beside PyTorch's SGD, at a rate of {rate}: through so many batch norms rounding grows tenfold with a step at
1e-4. Channels are an eighth of the published. A gradient that is zero by mathematics, the port's
biases under batch norm, is held to 1e-12 of its kernel's by a test of its own.

| model | endpoints at | training at, steps | {kinds} |
|---|---|---|{rules}
{rows}

The same references give the logits of torchvision's, timm's and pytorch-fid's Inception-v3 and of pretrainedmodels' BN-Inception, and ours
those of Keras's and TF-slim's: `tests/live/`.
"""


def measure(
    name: str, options: dict[str, Any], sizes: tuple[int, ...], training: tuple[int, int, int]
) -> dict[str, float]:
    """Returns the largest relative error of each kind."""
    worst = dict.fromkeys(KINDS, 0.0)
    for size in sizes:
        worst["endpoints and logits"] = max(
            worst["endpoints and logits"],
            *endpoint_errors(name, size, width=WIDTH, **options).values(),
        )
    size, batch, steps = training
    for entry, error in zero_gradients_apart(
        training_errors(name, size, batch, steps, width=WIDTH, **RATE, **options)
    ).items():
        for kind, prefixes in KINDS.items():
            if entry.split()[0] in prefixes:
                worst[kind] = max(worst[kind], error)
    return worst


def row(
    case: tuple[str, dict[str, Any], tuple[int, ...], tuple[int, int, int]],
    errors: dict[str, float],
) -> str:
    name, options, sizes, (size, _, steps) = case
    label = f"`{name}`" + "".join(
        f" {value}" if option == "flavour" else f", {option}={value}"
        for option, value in options.items()
    )
    cells = [
        label,
        ", ".join(map(str, sizes)),
        f"{size}, {steps}",
        *(f"{errors[kind]:.1e}" for kind in KINDS),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "parity-inception.json"
    )
    state_file = parser.parse_args().state
    jax.config.update("jax_enable_x64", True)
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    for case in CASES:
        key = repr(case)
        if key not in state:
            state[key] = measure(*case)
            state_file.write_text(json.dumps(state))
        print(json.dumps({"model": case[0], "options": case[1], **state[key]}), flush=True)
    if any(error > TOLERANCE for case in CASES for error in state[repr(case)].values()):
        sys.exit(f"an entry exceeds {TOLERANCE:.0e}: docs/parity-inception.md is left as it was")
    facts = {
        "jax": jax.__version__,
        "torch": torch.__version__.split("+")[0],
        "tolerance": TOLERANCE,
        "rate": RATE["schedule.learning_rate"],
    }
    rows = "\n".join(row(case, state[repr(case)]) for case in CASES)
    text = TEXT.format(**facts, kinds=" | ".join(KINDS), rules="---|" * len(KINDS), rows=rows)
    (ROOT / "docs" / "parity-inception.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
