"""GoogLeNet with batch norm on ImageNet, today's way: large batches in bfloat16, a cosine with
warm-up, label smoothing.

    python train.py --config=configs/imagenet_googlenet_bn.py --workdir=runs/imagenet_googlenet_bn

The rate follows the linear rule of 1706.02677, 0.1 for a batch of 256: scale both together. For
batches of 8,192, where that rule breaks, `:lars` (1708.03888) and `:lamb` (1904.00962, whose table
of ResNet-50 has this rate and warm-up) scale each layer's update by its weights' norm; the rates
are where to begin, none is measured.

Hardware: one GPU or more. Result: not measured.
"""

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` "lars" or "lamb" is for large batches. Raises UserError for any
    other.
    """
    if arg not in ("", "lars", "lamb"):
        raise UserError(
            f"configs/imagenet_googlenet_bn.py takes 'lars', 'lamb' or no argument, found {arg!r};"
            " change fields with --config.field=value"
        )
    config = default_config()
    config.dtype = "bfloat16"

    config.model.name = "googlenet_bn"

    config.data.name = "imagenet2012"
    config.data.eval_splits = ("validation",)
    config.data.workers = 8
    config.data.exact_decoding = False
    config.data.on_bad_image = "skip"
    config.preprocessing.size = 224
    config.preprocessing.resize = 256
    config.augment.area = (0.08, 1.0)
    config.augment.aspect = (3 / 4, 4 / 3)
    config.augment.interpolation = "bilinear_antialiased"
    config.augment.flip = True

    config.batch_size = 512
    config.eval_batch_size = 512
    config.duration = "90 epochs"

    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-5
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.2
    config.schedule.warmup = "5 epochs"
    config.loss.aux_weight = 0.3
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.9999
    config.ema.start = "5 epochs"
    if arg:
        config.batch_size = 8192
        config.optimizer.name = arg
    if arg == "lars":
        config.schedule.name, config.schedule.power = "polynomial", 2.0
        config.schedule.learning_rate = 10.0
    if arg == "lamb":
        config.optimizer.nesterov = False
        config.schedule.learning_rate = 0.02
    return config
