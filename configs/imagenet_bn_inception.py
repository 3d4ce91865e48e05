"""BN-Inception on ImageNet as its paper trained it (arXiv 1502.03167, section 4.2): BN-Baseline,
BN-x5 or BN-x30.

    python train.py --config=configs/imagenet_bn_inception.py --workdir=runs/imagenet_bn_inception
    python train.py --config=configs/imagenet_bn_inception.py:x5 --workdir=runs/imagenet_bn_inception_x5

Without an argument it is the baseline, Inception with batch norm and nothing else changed. `:x5`
and `:x30` make the paper's list of changes (4.2.1), each a line below: a rate 5 or 30 times as
high, no dropout, no local response norm, a fifth of the weight decay, a decay of the rate six times
as fast, less photometric distortion. The seventh, a more thorough shuffling, holds in all three:
each epoch is drawn anew. The baseline's weight decay is Caffe's, since the paper does not print its
own. The paper reports the steps of 32 images that reach 72.2 %: 13.3 million, 2.1 and 2.7; the best
top-1: 72.7, 73.0 and 74.8 %.

`:digits` is x5 for a narrow network on 32×32 digits; `:smoke` is 20 steps of it: run it with
`--config.duration="10 steps"` and then as it is, and it resumes in between.

Hardware: one GPU. Result: not measured.
"""

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config
from googlenet_jax.training.on_digits import on_digits, smoke

BASE_RATE = 0.0015
# Argument → how many times the baseline's rate, and the length of the run in steps of 32 images,
# past what the paper reports.
RUNS = {
    "": (1, 15_000_000),
    "baseline": (1, 15_000_000),
    "x5": (5, 5_000_000),
    "x30": (30, 6_000_000),
    "digits": (5, 0),
    "smoke": (5, 0),
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config. Raises UserError for an `arg` other than those of RUNS."""
    if arg not in RUNS:
        raise UserError(
            f"configs/imagenet_bn_inception.py takes {', '.join(map(repr, filter(None, RUNS)))} or"
            f" no argument, found {arg!r}"
        )
    times, steps = RUNS[arg]
    accelerated = times > 1
    config = default_config()

    config.model.name = "bn_inception"
    config.model.options.dropout = 0.0 if accelerated else 0.4
    config.model.options.lrn = not accelerated

    config.data.name = "imagenet2012"
    config.data.eval_splits = ("validation",)
    config.data.workers = 8
    config.data.exact_decoding = False
    config.data.on_bad_image = "skip"
    config.preprocessing.size = 224
    config.preprocessing.resize = 256
    config.augment.area = (0.08, 1.0)
    config.augment.aspect = (3 / 4, 4 / 3)
    config.augment.flip = True
    # GoogLeNet's distortions, and half of them where the paper says "reduce": how far, it does not
    # print.
    strength = 0.5 if accelerated else 1.0
    config.augment.brightness = 0.5 * strength
    config.augment.contrast = 0.5 * strength
    config.augment.saturation = 0.5 * strength
    config.augment.hue = 0.2 * strength
    config.augment.lighting = 0.1 * strength

    config.batch_size = 32
    config.eval_batch_size = 256
    config.duration = f"{steps} steps"

    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4 / 5 if accelerated else 2e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = BASE_RATE * times
    config.schedule.factor = 0.96
    config.schedule.every = f"{8 / 6:.4f} epochs" if accelerated else "8 epochs"
    config.ema.decay = 0.9999
    config.ema.start = "1 epoch"

    if arg in ("digits", "smoke"):
        on_digits(config, size=32, width=0.25)
        config.model.options.stem = "small"
        config.duration = "15 epochs"
    if arg == "smoke":
        smoke(config)
    return config
