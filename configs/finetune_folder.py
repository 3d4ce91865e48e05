"""A folder of images by class to a fine-tuned classifier, in one command.

    python train.py --config=configs/finetune_folder.py:PHOTOS --workdir=runs/photos

PHOTOS holds `train/CLASS/…` and `val/CLASS/…`, or `CLASS/…`, of which a tenth is set apart. It is
written once in the format that training reads, beside the other data sets (TFDS_DATA_DIR). Without
PHOTOS, a data set that is there already, of the name "photos" or another:

    python train.py --config=configs/finetune_folder.py --workdir=runs/finetune_folder --config.data.name=NAME

Begins with torchvision's GoogLeNet for ImageNet. `--config.init_from=X` begins with whatever
`gj.load` opens, and takes network, size and preprocessing from it. All
stays as it is but the last two modules, which learn, and a new head at ten times their rate.

Hardware: –. Result: not measured; the weights could not be downloaded where this was written.
"""

import re
from pathlib import Path

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config for the folder `arg`, having prepared it, or for a set named "photos".

    Raises UserError where there is no such folder, or it holds no images by class.
    """
    config = default_config()
    config.data.name = _prepare(arg) if arg else "photos"
    config.data.eval_splits = ("validation",)

    config.init_from = "googlenet_torchvision"
    config.model.name = ""  # init_from's
    config.preprocessing.size = 0  # likewise, with all else of the preprocessing
    config.freeze = ("all_but=2",)

    config.augment.area = (0.35, 1.0)
    config.batch_size = 32
    config.eval_batch_size = 64
    config.duration = "20 epochs"
    config.log_every = "10 steps"
    config.optimizer.nesterov = True
    config.optimizer.rate_multipliers = ("head=10",)
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.002
    config.schedule.warmup = "1 epoch"
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99
    return config


def _prepare(arg: str) -> str:
    """Writes the folder as a data set, where it was not yet; returns the set's name."""
    folder = Path(arg).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"configs/finetune_folder.py: there is no folder {arg!r}")
    from googlenet_jax.data.folder import prepare_folder
    from googlenet_jax.data.sources import default_data_dir

    name = re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_")
    prepare_folder(folder, name, default_data_dir())
    return name
