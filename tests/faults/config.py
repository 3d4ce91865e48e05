"""The config of tests/faults/process.py: 20 steps of 24 digits in float64."""

from googlenet_jax.training.config import default_config


def get_config():
    config = default_config()
    config.task = "slowed"
    config.dtype = "float64"
    config.model.name = "small"
    config.data.update(
        name="digits", train_split="train[:240]", eval_splits=("test[:60]",), threads=1
    )
    config.preprocessing.update(size=8, resize=8, mean=(77.8, 77.8, 77.8), std=(95.9, 95.9, 95.9))
    config.update(
        batch_size=24,
        eval_batch_size=24,
        duration="20 steps",
        eval_every="10 steps",
        checkpoint_every="5 steps",
    )
    config.log_every = "2 steps"
    return config
