"""A script, `python -m tests.training.meshes WORKDIR DATA_DIR NETWORK`: one run on several meshes
of eight simulated devices.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import googlenet_jax as gj
from googlenet_jax.runtime.sharding import create_mesh
from tests.training.tiny_run import tiny_config

LAYOUTS: dict[str, dict[str, Any]] = {
    "1x1": {},
    "1x8": {"mesh": "data=8"},
    "2x4": {"mesh": "data=2,model=4", "shard": ("*=model",)},
    "fsdp": {"mesh": "data=8", "shard": ("*=data",)},
}


class Places(gj.Callback):
    """Where a state's arrays lie: how many have parts that are not whole."""

    def stepped(self, step: int, state: Any, metrics: Any) -> None:
        self.split = {
            part: sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))
            for part, tree in (("params", state.params), ("optimizer", state.opt_state))
        }


def main(workdir: Path, data_dir: Path, network: str) -> None:
    jax.config.update("jax_enable_x64", True)
    found = {}
    for name, layout in LAYOUTS.items():
        config = tiny_config(data_dir)
        config.update(dtype="float64", batch_size=16, eval_batch_size=16)
        config.data.update(train_split="train[:48]", eval_splits=("test[:20]",))
        config.duration = config.eval_every = config.checkpoint_every = config.log_every = "3 steps"
        if network != "tiny":
            config.model.name = network
            config.model.options.update(width=0.125, stem="small", dropout=0.2)
            config.preprocessing.update(size=32, resize=32)
        config.devices.update(layout)
        mesh = create_mesh(jax.devices()[:1]) if name == "1x1" else None
        places = Places()
        gj.train(config, workdir / name, callbacks=[places], mesh=mesh)
        lines = (workdir / name / "metrics.jsonl").read_text().splitlines()
        variables = flatten_dict(gj.load(workdir / name).variables, sep="/")
        np.savez(
            workdir / f"{name}.npz", **{key: np.asarray(value) for key, value in variables.items()}
        )
        found[name] = {"split": places.split, "loss": json.loads(lines[-1])["loss"]}
    (workdir / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
