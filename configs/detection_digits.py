"""Detection of real digits on real photographs: 400 scenes to train on, 100 to test. Nothing is downloaded.

python train.py --config=configs/detection_digits.py --workdir=runs/detection_digits
"""

from ml_collections import ConfigDict

from googlenet_jax.detection.rcnn import default_rcnn_config
from googlenet_jax.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe."""
    if arg:
        raise UserError(f"configs/detection_digits.py takes no argument, found {arg!r}")
    config = default_rcnn_config()
    config.model.name = "googlenet_bn"
    config.model.options.stem = "small"
    config.model.options.width = 0.25

    config.data.name = "digit_scenes"
    config.data.train_split = "train"
    config.data.eval_splits = ("test",)
    config.data.threads = 2
    config.regions.canvas = 320
    config.preprocessing.size = 32
    config.preprocessing.resize = 32
    config.preprocessing.mean = (110.0, 110.0, 90.0)
    config.preprocessing.std = (70.0, 70.0, 70.0)
    config.augment.flip = False  # a mirrored digit is another sign

    config.batch_size = 32
    config.eval_batch_size = 256
    config.duration = "400 steps"
    config.eval_every = "400 steps"
    config.checkpoint_every = "400 steps"
    config.log_every = "20 steps"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "20 steps"
    return config
