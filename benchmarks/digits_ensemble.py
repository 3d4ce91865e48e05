"""Trains models of the paper's ensemble on digits, and evaluates them with 1, 10 and 144 crops.

    python -m benchmarks digits_ensemble --folder runs/digits_ensemble [--models 3]

The configs are `configs/imagenet_googlenet.py:ensemble0` … `:ensemble6`: one initialization,
sampling and input order of their own, the last one wider. They are shrunk to digits: a narrow
`googlenet_bn` without auxiliary heads for images of 16×16, crops of at least 30 % of the area,
short runs. A model that is trained already is not trained again, and an evaluation that was
stopped goes on. Prints the evaluation's JSON.
"""

import argparse
import contextlib
import importlib.util
import sys
from pathlib import Path

from ml_collections import ConfigDict

from googlenet_jax.cli.main import main as command
from googlenet_jax.training.loop import train

RECIPE = Path(__file__).parent.parent / "configs" / "imagenet_googlenet.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for the runs")
    parser.add_argument("--models", type=int, default=7, choices=range(1, 8), help="default: 7")
    parser.add_argument("--duration", default="10 epochs", help="of each run (default: 10 epochs)")
    parser.add_argument("--data-dir", default="", metavar="DIR", help="where digits lies or is put")
    args = parser.parse_args()

    runs = [args.folder / f"ensemble{number}" for number in range(args.models)]
    for number, run in enumerate(runs):
        with contextlib.redirect_stdout(sys.stderr):
            train(digits_config(number, args.duration, args.data_dir), run)
    weights = ",".join(map(str, runs))
    output = args.folder / f"evaluation-of-{args.models}"
    return command(
        ["evaluate", "--weights", weights, "--crops", "144", "--output", str(output), "--json"]
    )


def digits_config(number: int, duration: str, data_dir: str) -> ConfigDict:
    """Returns the config of one of the seven models, shrunk to digits."""
    spec = importlib.util.spec_from_file_location("imagenet_googlenet", RECIPE)
    assert spec is not None and spec.loader is not None
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    config = config.get_config(f"ensemble{number}")

    width = config.model.options.get("width", 1.0)
    config.model.name = "googlenet_bn"
    config.model.options = {"stem": "small", "width": 0.15 * width, "aux_heads": False}
    config.data.update(name="digits", dir=data_dir, eval_splits=("test",), threads=2)
    config.preprocessing.update(
        size=16, resize=16, mean=(77.9,) * 3, std=(95.9,) * 3, channel_order="rgb"
    )
    config.augment.area = (max(0.3, config.augment.area[0]), config.augment.area[1])
    config.update(batch_size=64, eval_batch_size=360, duration=duration, log_every="10 steps")
    config.update(eval_every=duration, checkpoint_every=duration)
    config.optimizer.update(nesterov=True, weight_decay=5e-4, bias_rate_multiplier=1.0)
    config.schedule.update(name="cosine", learning_rate=0.1, warmup="0.5 epochs")
    config.ema.update(decay=0.9, start="0 epochs")
    return config


if __name__ == "__main__":
    sys.exit(main())
