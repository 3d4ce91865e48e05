"""A config's `:digits` and `:smoke`: the same code on scikit-learn's handwritten digits, which
nothing need be downloaded for.
"""

from ml_collections import ConfigDict


def on_digits(config: ConfigDict, size: int, width: float) -> None:
    """Puts a config onto the digits, in place: a narrow network and images of `size` × `size`,
    enlarged from 8×8.

    What makes the config, its optimizer, schedule and losses, stays; a caller scales it to a short
    run.
    """
    config.dtype = "float32"
    config.model.options.width = width

    config.data.name = "digits"
    config.data.train_split = "train"
    config.data.eval_splits = ("test",)
    config.data.threads = 2
    config.data.workers = 0  # small images are read faster than they are sent
    config.data.exact_decoding = True
    config.data.on_bad_image = "error"
    config.preprocessing.size = size
    config.preprocessing.resize = size
    config.preprocessing.mean = (77.9, 77.9, 77.9)  # of the training images; grey is fed as RGB
    config.preprocessing.std = (95.9, 95.9, 95.9)
    config.augment.area = (0.7, 1.0)
    config.augment.aspect = (0.8, 1.25)
    config.augment.flip = False  # a mirrored digit is another sign
    for distortion in ("brightness", "contrast", "saturation", "hue", "lighting"):
        config.augment[distortion] = 0.0  # the digits are grey

    config.batch_size = 32
    config.eval_batch_size = 120
    config.checkpoint_every = "5 epochs"
    config.log_every = "10 steps"
    # Batch norm and the average follow a run of some hundred steps.
    config.model.options.bn_momentum = 0.9
    config.ema.decay = 0.95
    config.ema.start = "0 epochs"


def smoke(config: ConfigDict) -> None:
    """Cuts a config on the digits to 20 steps with a checkpoint after 10, in place.

    Run it with `--config.duration="10 steps"` first and then as it is: the second run goes on from
    the first's checkpoint.
    """
    config.data.eval_splits = ("test[:16]",)
    config.batch_size = 8
    config.eval_batch_size = 16
    config.duration = "20 steps"
    config.eval_every = "20 steps"
    config.checkpoint_every = "10 steps"
    config.log_every = "5 steps"
