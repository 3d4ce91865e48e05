"""A run that trains in seconds: real digits, and a miniature network with all that a state can hold
(batch norm, dropout, auxiliary head).

As a script, `python -m tests.training.tiny_run WORKDIR DATA_DIR`, it is the process that the resume
test kills.
"""

import sys
from pathlib import Path

import flax.linen as nn
from ml_collections import ConfigDict

from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.models.network import Network, Output
from googlenet_jax.models.registry import register_model
from googlenet_jax.training.config import default_config
from googlenet_jax.training.loop import train


class Tiny(Network):
    """Convolution, batch norm, dropout, classifier, and an auxiliary head."""

    @nn.compact
    def __call__(self, images, train, **_):
        x = nn.Conv(round(8 * self.width), (3, 3), strides=2, name="conv1")(images)
        x = nn.relu(
            nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        ).reshape(images.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        aux = (
            {"aux1": nn.Dense(self.num_classes, name="aux1")(x)}
            if train or self.is_initializing()
            else {}
        )
        return Output(nn.Dense(self.num_classes, name="head")(x), aux)


def tiny_config(data_dir: Path) -> ConfigDict:
    """24 steps of 100 of 400 examples: 4 steps an epoch, a training line every 3, an evaluation
    every 4, a checkpoint every 4.
    """
    # Here and not on import: tests that are parametrized by the registry must not see it.
    register_model("tiny", Tiny)
    prepare_digits(data_dir)
    config = default_config()
    config.model.name = "tiny"
    config.data.update(
        name="digits",
        dir=str(data_dir),
        train_split="train[:400]",
        eval_splits=("test[:100]", "train[:50]"),
        threads=2,
    )
    config.preprocessing.update(size=8, resize=8, mean=(77.8, 77.8, 77.8), std=(95.9, 95.9, 95.9))
    config.update(
        batch_size=100,
        eval_batch_size=64,
        duration="6 epochs",
        eval_every="1 epoch",
        checkpoint_every="4 steps",
        log_every="3 steps",
    )
    config.ema.decay = 0.9
    return config


if __name__ == "__main__":
    train(tiny_config(Path(sys.argv[2])), sys.argv[1])
