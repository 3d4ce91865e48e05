"""GoogLeNet on ImageNet, 2014's way.

    python train.py --config=configs/imagenet_googlenet.py --workdir=runs/imagenet_googlenet

From the paper (1409.4842, section 6): momentum 0.9, the learning rate falls by 4 % every 8 epochs,
crops of 8–100 % of the area with an aspect ratio of 3/4–4/3, an interpolation drawn from four,
mirror images, photometric distortions, both auxiliary heads with weight 0.3, and Polyak averaging.
The paper gives no amounts for the
distortions: they are those of the work it cites for them (1312.5402: brightness, contrast and
colour by 0.5–1.5, AlexNet's lighting noise), and hue by up to a fifth of the circle as in
TensorFlow's published Inception code.
Where the paper is silent, Caffe's bvlc_googlenet with its quick solver: batch 32, rate 0.01, weight
decay 2e-4 on kernels alone, biases at twice the rate, 2.4 million steps, images in BGR minus their
mean. Caffe itself states 68.7 % top-1 and 88.9 % top-5 for that solver, with its own polynomial
decay and plain crops.

`--config=configs/imagenet_googlenet.py:ensemble0` … `:ensemble6` are the paper's seven models
(section 7): the same initial parameters and learning rates, each with its own order of the images
and its own sampling, and one wider network (`:ensemble6`). How they sample and how wide the wide
one is the paper does not say, only that some models saw smaller crops and others larger ones
(section 6). Evaluate them together with `googlenet-jax evaluate --weights
runs/ensemble0,runs/ensemble1,… --crops 144`.

Hardware: one GPU or more; the batch is 32 whatever the number of devices. Result: not measured.
"""

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config

# Of each model of the ensemble: the smallest and largest area of a crop, and its smallest aspect
# ratio (the largest is the inverse).
SAMPLING = (
    (0.08, 1.0, 3 / 4),
    (0.08, 0.6, 3 / 4),
    (0.3, 1.0, 3 / 4),
    (0.08, 1.0, 2 / 3),
    (0.15, 0.8, 3 / 4),
    (0.08, 1.0, 1 / 2),
    (0.08, 1.0, 3 / 4),
)
WIDE = 1.25  # the width of the last one


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config, or with `arg` "ensemble0" … "ensemble6" that model's. Raises UserError
    for any other `arg`.
    """
    models = [f"ensemble{number}" for number in range(len(SAMPLING))]
    if arg and arg not in models:
        raise UserError(
            f"configs/imagenet_googlenet.py takes 'ensemble0' to {models[-1]!r} or no argument,"
            f" found {arg!r}; change fields with --config.field=value"
        )
    config = default_config()

    config.model.name = "googlenet"

    config.data.name = "imagenet2012"
    config.data.eval_splits = ("validation",)
    config.data.workers = 8
    config.data.exact_decoding = False
    config.data.on_bad_image = "skip"
    config.preprocessing.size = 224
    config.preprocessing.resize = 256
    config.preprocessing.mean = (104.0, 117.0, 123.0)
    config.preprocessing.std = (1.0, 1.0, 1.0)
    config.preprocessing.channel_order = "bgr"
    config.augment.area = (0.08, 1.0)
    config.augment.aspect = (3 / 4, 4 / 3)
    config.augment.interpolation = "random"
    config.augment.flip = True
    config.augment.brightness = 0.5
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.augment.hue = 0.2
    config.augment.lighting = 0.1

    config.batch_size = 32
    config.eval_batch_size = 256
    config.duration = "2400000 steps"

    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4
    config.optimizer.bias_rate_multiplier = 2.0
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.01
    config.schedule.factor = 0.96
    config.schedule.every = "8 epochs"
    config.loss.aux_weight = 0.3
    config.ema.decay = 0.9999
    config.ema.start = "1 epoch"
    if arg:
        _vary(config, models.index(arg))
    return config


def _vary(config: ConfigDict, number: int) -> None:
    """Makes it the config of one model of the ensemble."""
    config.init_seed = 0
    config.seed = number
    smallest, largest, aspect = SAMPLING[number]
    config.augment.area = (smallest, largest)
    config.augment.aspect = (aspect, 1 / aspect)
    if number == len(SAMPLING) - 1:
        config.model.options.width = WIDE
