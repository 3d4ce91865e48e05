"""How long the device waits for the input while it trains.

    python -m benchmarks waiting NAME SPLIT [--data-dir DIR] [--steps 20] [--workers 1] > FILE.json

Trains googlenet_bn at 224 × 224 as the training loop does: a step is handed over, and while it runs
the next batch is fetched. Where the step's result is there before the next batch is, the device has
waited, at most as long as the fetching took; the share is the sum of these over the whole time.
"""

import argparse
import json
import time
from typing import Any

import jax

from googlenet_jax.runtime.sharding import create_mesh, shard_batch
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.state import make_create_state
from googlenet_jax.training.step import make_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("split")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    config = CLASSIFICATION.defaults()
    config.update_from_flattened_dict(
        {
            "batch_size": args.batch_size,
            "dtype": args.dtype,
            "data.name": args.name,
            "data.dir": args.data_dir,
            "data.train_split": args.split,
            "data.eval_splits": (args.split,),
            "data.workers": args.workers,
            "data.exact_decoding": False,
            "augment.interpolation": "bilinear_antialiased",
        }
    )
    mesh = create_mesh()
    task = CLASSIFICATION.open(config, mesh)
    schedule = create_schedule("cosine", 0.01, args.steps)
    optimizer = create_optimizer(schedule)
    train_step: Any = make_train_step(task, optimizer, schedule, mesh)
    state = make_create_state(task.model, optimizer, task.inputs(task.example), average=False)(
        jax.random.key(0)
    )
    key, batches = jax.random.key(1), task.batches(0)
    state, metrics = train_step(state, shard_batch(next(batches), mesh), key)  # compiles
    jax.block_until_ready(metrics)
    waited = fetching = 0.0
    began = time.perf_counter()
    for _ in range(args.steps):
        start = time.perf_counter()
        batch = shard_batch(next(batches), mesh)
        took = time.perf_counter() - start
        fetching += took
        if metrics["loss"].is_ready():
            waited += took
        before = metrics
        state, metrics = train_step(state, batch, key)
        jax.block_until_ready(before)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    batches.close()
    facts = {
        "seconds": round(seconds, 2),
        "fetching_seconds": round(fetching, 3),
        "waiting_share_at_most": round(waited / seconds, 4),
    }
    print(json.dumps({**vars(args), **facts, "devices": str(jax.devices())}))


if __name__ == "__main__":
    main()
