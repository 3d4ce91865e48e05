"""PASCAL VOC 2007 with GoogLeNet as R-CNN's region classifier, as in the ILSVRC14 entry (arXiv
1409.4842, section 8).

    googlenet-jax prepare voc/2007
    googlenet-jax proposals voc/2007 --split train+validation --methods selective_search_x2_w500
    googlenet-jax proposals voc/2007 --split test --methods selective_search_x2_w500
    python train.py --config=configs/detection_voc.py --workdir=runs/detection_voc

It begins with torchvision's GoogLeNet for ImageNet. `--config.init_from=X` begins with whatever
`gj.load` opens, of any network of the family, and takes network, size and preprocessing from it.
`:multibox` trains MultiBox; with its 200 boxes besides, as the entry had them:

    python train.py --config=configs/detection_voc.py:multibox --workdir=runs/voc_multibox
    googlenet-jax proposals voc/2007 --split test --methods multibox --multibox runs/voc_multibox

and the same for train+validation, then `proposals.names = ("selective_search_x2_w500",
"multibox")`.

Windows are warped with 16/227 of the input's side as context, batches hold 32 windows of objects
and 96 of background, the rate is a tenth of pretraining's and falls once by 10 (R-CNN, arXiv
1311.2524).

Hardware: one GPU or more. Result: not measured.
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
        raise UserError(f"configs/detection_voc.py takes no argument but 'multibox', found {arg!r}")
    config = multibox() if arg else rcnn()

    config.init_from = "googlenet_torchvision"
    config.model.name = ""  # init_from's
    config.preprocessing.size = 0  # likewise, with all else of the preprocessing
    config.data.name = "voc/2007"
    config.data.train_split = "train+validation"
    config.data.eval_splits = ("test",)
    config.data.threads = 16
    config.log_every = "100 steps"
    config.optimizer.weight_decay = 5e-4
    return config


def rcnn() -> ConfigDict:
    """What is the region classifier's own."""
    config = default_rcnn_config()
    config.proposals.names = ("selective_search_x2_w500",)
    config.regions.measure = "voc2007"
    config.batch_size = 32  # object windows, and 96 of background
    config.eval_batch_size = 512  # windows
    config.duration = "70000 steps"  # R-CNN's
    config.eval_every = "10000 steps"
    config.checkpoint_every = "5000 steps"
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.001
    config.schedule.factor = 0.1
    config.schedule.every = "20000 steps"
    return config


def multibox() -> ConfigDict:
    """What is MultiBox's own."""
    config = default_multibox_config()
    config.multibox.boxes = 200
    config.batch_size = 64
    config.eval_batch_size = 64
    config.duration = "100 epochs"
    config.eval_every = "10 epochs"
    config.checkpoint_every = "10 epochs"
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup = "1 epoch"
    return config
