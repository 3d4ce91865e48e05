"""Inception-v3 on ImageNet as its paper trained it (arXiv 1512.00567, section 8), in TF-slim's
form.

    python train.py --config=configs/imagenet_inception_v3.py --workdir=runs/imagenet_inception_v3

RMSProp with decay 0.9 and epsilon 1, its accumulator beginning at one as TensorFlow's does,
momentum 0.9; a rate of 0.045 that falls by 0.94 every two epochs; gradients clipped to a norm of 2;
label smoothing 0.1; an average of the parameters. The paper's 50 replicas of 32 images stand here
as one batch of 1600: for fewer devices scale batch and rate down together. Weight decay is slim's,
the auxiliary head's weight GoogLeNet's; the paper gives neither.

`:digits` is the same config for a narrow network without the auxiliary head on 75×75 digits;
`:smoke` is 20 steps of it at 299, with the head: run it with `--config.duration="10 steps"` and
then as it is, and it resumes in between.

Hardware: 8 GPUs or a TPU slice. Result: not measured.
"""

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config
from googlenet_jax.training.on_digits import on_digits, smoke


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config. Raises UserError for an `arg` other than "", "digits" and "smoke"."""
    if arg not in ("", "digits", "smoke"):
        raise UserError(
            "configs/imagenet_inception_v3.py takes 'digits', 'smoke' or no argument, found"
            f" {arg!r}"
        )
    config = default_config()
    config.dtype = "bfloat16"

    config.model.name = "inception_v3"
    config.model.options.flavour = "slim"

    config.data.name = "imagenet2012"
    config.data.eval_splits = ("validation",)
    config.data.workers = 8
    config.data.exact_decoding = False
    config.data.on_bad_image = "skip"
    config.preprocessing.size = 299
    config.preprocessing.resize = 342  # the central 87.5 %
    config.preprocessing.mean = (127.5, 127.5, 127.5)
    config.preprocessing.std = (127.5, 127.5, 127.5)
    config.augment.area = (0.08, 1.0)
    config.augment.aspect = (3 / 4, 4 / 3)
    config.augment.flip = True

    config.batch_size = 1600
    config.eval_batch_size = 512
    config.duration = "100 epochs"

    config.optimizer.name = "rmsprop"
    config.optimizer.options.decay = 0.9
    config.optimizer.options.eps = 1.0
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 4e-5
    config.optimizer.clip_norm = 2.0
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.045
    config.schedule.factor = 0.94
    config.schedule.every = "2 epochs"
    config.loss.aux_weight = 0.3
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.9999
    config.ema.start = "2 epochs"

    if arg == "digits":
        on_digits(config, size=75, width=0.25)
        config.model.options.aux_heads = False  # it needs 299×299
        config.duration = "20 epochs"
    elif arg == "smoke":
        on_digits(config, size=299, width=0.04)
        smoke(config)
    return config
