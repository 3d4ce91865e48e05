"""One process of a run on a tiny network, in float64:
`python -m tests.faults.process WORKDIR DATA_DIR …`.

What comes after the folders is as `googlenet-jax train` takes it; `--fails` lets this process raise
at its first batch, `--stands-still` lets it wait for an hour before its fourth,
`--slow=SECONDS` is what each batch takes at least, and `--silence=SECONDS` replaces
`cluster.SILENCE`. The ids of each batch that is read go to `WORKDIR.K.ids`, a line each.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax

from googlenet_jax.cli.main import main
from googlenet_jax.errors import UserError
from googlenet_jax.models.layers import BatchNorm
from googlenet_jax.models.network import Network, Output
from googlenet_jax.models.registry import register_model
from googlenet_jax.runtime import distributed as cluster
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.task import TaskKind, register_task


class Small(Network):
    """Convolution, the project's batch norm, dropout, classifier."""

    bn_groups: int = 1

    @nn.compact
    def __call__(self, images, train, **_):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv1", **types)(images)
        x = BatchNorm(groups=self.bn_groups, name="bn", **types)(x, not train, relu=True)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        return Output(nn.Dense(self.num_classes, name="head", **types)(x), {})


def slowed(fails, stands_still, seconds, ids):
    """A kind of task whose batches take so long; `ids` is the start of the file's name."""

    def open_slowed(resolved, mesh):
        task = CLASSIFICATION.open(resolved, mesh)

        def batches(start):
            path = Path(f"{ids}.{jax.process_index()}.ids")
            with path.open("a", buffering=1) as file:
                for number, batch in enumerate(task.batches(start), start):
                    print(json.dumps([number, batch["index"].tolist()]), file=file)
                    time.sleep(seconds)
                    if fails:
                        raise UserError("this batch can't be read")
                    if stands_still and number == 3:
                        time.sleep(3600)
                    yield batch

        def evaluation(evaluate):
            def slow(variables, should_stop):
                def asked():
                    time.sleep(seconds)
                    return should_stop()

                return evaluate(variables, asked)

            return slow

        evaluations = {split: evaluation(evaluate) for split, evaluate in task.evaluations.items()}
        return dataclasses.replace(task, batches=batches, evaluations=evaluations)

    return TaskKind(CLASSIFICATION.defaults, CLASSIFICATION.build, open_slowed)


if __name__ == "__main__":
    sys.modules["torch"] = None  # tensorboardX would import it, for seconds
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("data_dir")
    parser.add_argument("--fails", action="store_true")
    parser.add_argument("--stands-still", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--silence", type=float, default=cluster.SILENCE)
    args, rest = parser.parse_known_args()
    jax.config.update("jax_enable_x64", True)
    cluster.SILENCE = args.silence
    register_model("small", Small)
    register_task("slowed", slowed(args.fails, args.stands_still, args.slow, args.workdir))
    config = str(Path(__file__).with_name("config.py"))
    more = [f"--config={config}", f"--workdir={args.workdir}", f"--config.data.dir={args.data_dir}"]
    sys.exit(main(["train", *more, *rest]))
