"""CIFAR-10: 50,000 images of 32×32 in ten classes to train on, 10,000 to test.

    python train.py --config=configs/cifar10.py --workdir=runs/cifar10

`--config=configs/cifar10.py:tune` trains on 45,000 of the training images and evaluates on the
other 5,000, so that choices never see the test set.

Hardware: 2 cores of an AMD EPYC (matrix products at 192 GFLOP/s), jax 0.10.2. Result: after 28
epochs, on all 10,000 test images, 89.56 % top-1 with the averaged weights, 89.44 % raw; top-5 99.65
%. About 100 minutes at 230–240 images/s where nothing else runs; it took 129 beside other work.
Metrics: benchmarks/results/2026-11-24-cifar10-metrics.jsonl.
"""

from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `arg` "tune" holds out training images instead of the test set. Raises
    UserError for any other.
    """
    if arg not in ("", "tune"):
        raise UserError(
            f"configs/cifar10.py takes no argument, or 'tune', found {arg!r}; change fields with"
            " --config.field=value"
        )
    config = default_config()

    config.model.name = "googlenet_bn"
    config.model.options.stem = "small"
    config.model.options.width = 0.375
    config.model.options.dropout = 0.1
    config.model.options.aux_dropout = 0.1

    config.data.name = "cifar10"
    config.data.train_split = "train[:45000]" if arg == "tune" else "train"
    config.data.eval_splits = ("train[45000:]",) if arg == "tune" else ("test",)
    config.data.threads = 1
    config.preprocessing.size = 32
    config.preprocessing.resize = 32
    config.preprocessing.mean = (125.3, 123.0, 113.9)  # of the training images
    config.preprocessing.std = (63.0, 62.1, 66.7)
    config.augment.size = 24
    config.augment.area = (0.4, 0.8)  # objects look as large as in the whole image
    config.augment.aspect = (0.85, 1.18)

    config.batch_size = 128
    config.eval_batch_size = 500
    config.duration = "28 epochs"
    config.eval_every = "2 epochs"

    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup = "1 epoch"
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.995
    return config
