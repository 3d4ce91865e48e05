"""Detection of real digits on real photographs: 400 scenes to train on, 100 to test. Nothing is
downloaded.

    googlenet-jax proposals digit_scenes --split train
    googlenet-jax proposals digit_scenes --split test
    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/detection_digits.py --workdir=runs/detection_digits
    googlenet-jax detect --weights runs/detection_digits --split test --output runs/detection_digits

The classifier is fine-tuned from the network that `configs/digits.py` trains. Three of them, with
--config.seed=0, 1 and 2, are averaged by `detect --weights A,B,C`. `:multibox` trains MultiBox on
the same scenes; docs/detection.md shows all of it.

Hardware: 2 cores of an AMD EPYC.
Result: mAP 0.889, of three networks 0.905; MultiBox's recall 0.56. More in docs/detection.md.
"""

from ml_collections import ConfigDict

from googlenet_jax.detection.multibox import default_multibox_config
from googlenet_jax.detection.rcnn import default_rcnn_config
from googlenet_jax.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the region classifier, or with `arg` "multibox" that of MultiBox.

    Raises UserError for another `arg`.
    """
    if arg not in ("", "multibox"):
        raise UserError(
            f"configs/detection_digits.py takes no argument but 'multibox', found {arg!r}"
        )
    config = multibox() if arg else rcnn()

    config.model.name = "googlenet_bn"
    config.data.name = "digit_scenes"
    config.data.train_split = "train"
    config.data.eval_splits = ("test",)
    config.data.threads = 2
    config.preprocessing.mean = (77.9, 77.9, 77.9)  # those of configs/digits.py
    config.preprocessing.std = (95.9, 95.9, 95.9)
    config.augment.flip = False  # a mirrored digit is another sign

    config.log_every = "10 steps"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    return config


def rcnn() -> ConfigDict:
    """What is the region classifier's own."""
    config = default_rcnn_config()
    config.init_from = "runs/digits"
    config.model.options = {"stem": "small", "width": 0.25}
    config.preprocessing.update(size=32, resize=32)
    config.regions.canvas = 320
    config.batch_size = 32  # object windows, and 96 of background
    config.eval_batch_size = 256  # windows
    config.duration = "300 steps"
    config.eval_every = "300 steps"
    config.checkpoint_every = "100 steps"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup = "20 steps"
    return config


def multibox() -> ConfigDict:
    """What is MultiBox's own."""
    config = default_multibox_config()
    config.model.options = {"width": 0.25, "aux_heads": False}
    config.preprocessing.update(size=128, resize=128)
    config.multibox.canvas = 320
    config.multibox.boxes = 200
    config.batch_size = 32
    config.eval_batch_size = 32
    config.duration = "60 epochs"
    config.eval_every = "20 epochs"
    config.checkpoint_every = "20 epochs"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = "2 epochs"
    return config
