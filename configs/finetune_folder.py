"""A folder of images by class to a fine-tuned classifier, in one command.

    python train.py --config=configs/finetune_folder.py:PHOTOS --workdir=runs/photos

PHOTOS holds `train/CLASS/…` and `val/CLASS/…`, or `CLASS/…`, of which a tenth is set apart. It is
written once in the format that training reads, beside the other data sets (TFDS_DATA_DIR). PHOTOS
may also be the name of a set that is there already. What depends on the number of images, the
batch, the length and the average, is set for it; without PHOTOS, for a thousand:

    python train.py --config=configs/finetune_folder.py --workdir=runs/finetune_folder --config.data.name=NAME

Begins with torchvision's GoogLeNet for ImageNet. `--config.init_from=X` begins with whatever
`gj.load` opens, and takes network, size and preprocessing from it. All
stays as it is but the last two modules, which learn, and a new head at ten times their rate.

Hardware: –. Result: with ImageNet's weights not measured; they could not be downloaded where this
was written. docs/tutorials/your-photos.md has small sets' results.
"""

import re
from pathlib import Path

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config

FEWEST_STEPS = 300  # a new head needs them, however few the images
EPOCHS = 20  # where that is more


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config for the folder `arg`, having prepared it, or for the data set of that
    name; for one named "photos" without.

    Raises UserError where there is no such folder or set, or it holds no images by class.
    """
    config = default_config()
    name, examples = _open(arg) if arg else ("photos", 1000)
    config.data.name = name
    config.data.eval_splits = ("validation",)

    config.init_from = "googlenet_torchvision"
    config.model.name = ""  # init_from's
    config.preprocessing.size = 0  # likewise, with all else of the preprocessing
    config.freeze = ("all_but=2",)

    config.augment.area = (0.35, 1.0)
    config.eval_batch_size = 64
    config.log_every = "10 steps"
    config.optimizer.nesterov = True
    config.optimizer.rate_multipliers = ("head=10",)
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.002
    config.loss.label_smoothing = 0.1
    scale(config, examples)
    return config


def scale(config: ConfigDict, examples: int) -> None:
    """Sets what depends on the number of images to train on: batches of at most a quarter of them,
    steps enough for a head, an average over the last twentieth of the run, in which the rate is
    near 0, so that it ends where the raw weights do.
    """
    config.batch_size = next((size for size in (32, 16) if 4 * size <= examples), 8)
    steps = max(FEWEST_STEPS, round(EPOCHS * examples / config.batch_size))
    config.duration = f"{steps} steps"
    config.schedule.warmup = f"{steps // 20} steps"
    config.eval_every = config.checkpoint_every = f"{steps // 6} steps"
    config.ema.decay = round(1 - 20 / steps, 4) if steps > 200 else 0.9


def _open(arg: str) -> tuple[str, int]:
    """The name of the data set of a folder, which is written where it was not yet, or of a prepared
    set, and its training examples.
    """
    from googlenet_jax.data.folder import prepare_folder
    from googlenet_jax.data.sources import load_source, write_data_sets_in

    folder, name = Path(arg).expanduser().resolve(), arg
    if folder.is_dir():
        name = re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_")
        prepare_folder(folder, name, write_data_sets_in())
    try:
        return name, len(load_source(name, "train"))
    except UserError as error:
        raise UserError(
            f"configs/finetune_folder.py: there is no folder {arg!r}, and no such data set: {error}"
        ) from error
