"""Fine-tuning on few pictures, beside a linear probe on the same network's frozen features.

    python -m benchmarks small_sets --cifar-dir DATA_DIR --folder runs/small_sets

DATA_DIR holds CIFAR-10, as TFDS writes it. A trunk, `configs/cifar10_fast.py` at a width of 0.35,
learns five of its classes, from 25,000 images. The small sets are of the other five, which it has
never seen: 30, 10 and 5 training pictures a class, and 5 of two classes; 200 test images a class
for all. On each: `googlenet-jax probe`, and `configs/finetune_folder.py` as it is, raw and
averaged. What is done is not done again. Prints a JSON line a set.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2

SEEN = ("airplane", "automobile", "deer", "horse", "ship")
NEW = ("bird", "cat", "dog", "frog", "truck")
# Name → classes, training pictures a class.
SETS = {
    "five_by_30": (NEW, 30),
    "five_by_10": (NEW, 10),
    "five_by_5": (NEW, 5),
    "two_by_5": (NEW[1:3], 5),
}
TESTED = 200  # of each class


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--trunk-epochs", default=2, type=int, metavar="N", help="(default: 2)")
    parser.add_argument("--trunk", metavar="RUN", help="take this network (default: train one)")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    os.environ["TFDS_DATA_DIR"] = str(folder / "data")
    with contextlib.redirect_stdout(sys.stderr):
        _write_sets(args.cifar_dir, folder)
    trunk = args.trunk or str(folder / "trunk")
    if not args.trunk:
        shorter = [f"--config.duration={args.trunk_epochs} epochs", "--config.eval_every=1 epoch"]
        shorter.append("--config.model.options.width=0.35")
        data = ["--config.data.name=trunk", "--config.data.eval_splits=('validation',)"]
        _command("train", "--config=configs/cifar10_fast.py", f"--workdir={trunk}", *data, *shorter)
    for name in SETS:
        print(json.dumps(_measure(name, trunk, folder)), flush=True)
    return 0


def _measure(name: str, trunk: str, folder: Path) -> dict[str, Any]:
    probe = json.loads(
        _command("probe", name, "--weights", trunk, "--split", "validation", "--json")
    )
    run, start = folder / name, time.perf_counter()
    config = f"--config=configs/finetune_folder.py:{name}"
    _command("train", config, f"--workdir={run}", f"--config.init_from={trunk}")
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = {each["weights"]: each["top1"] for each in lines if each["split"] == "validation"}
    return {
        "set": name,
        "examples": probe["examples"],
        "probe": probe["top1"],
        "raw": ends["raw"],
        "averaged": ends["ema"],
        "steps": lines[-1]["step"],
        "seconds": round(seconds, 1),
    }


def _command(*arguments: str) -> str:
    command = [sys.executable, "-m", "googlenet_jax", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _write_sets(cifar_dir: Path, folder: Path) -> None:
    """Writes the trunk's set and the small ones, unless they are there."""
    from googlenet_jax.data.folder import prepare_folder
    from googlenet_jax.data.sources import load_source

    wanted = {"trunk": (SEEN, 5000), **SETS}
    if all((folder / "data" / name).is_dir() for name in wanted):
        return
    for split in ("train", "test"):
        source = load_source("cifar10", split, cifar_dir)
        counts: dict[str, int] = {}
        for start in range(0, len(source), 1000):
            chunk = range(start, min(start + 1000, len(source)))
            for index, example in zip(chunk, source.read(chunk), strict=True):
                label = source.class_names[example["label"]]
                number = counts[label] = counts.get(label, 0) + 1
                for name, (classes, most) in wanted.items():
                    if label in classes and number <= (most if split == "train" else TESTED):
                        part = "train" if split == "train" else "val"
                        file = folder / "pictures" / name / part / label / f"{index:05d}.png"
                        file.parent.mkdir(parents=True, exist_ok=True)
                        cv2.imwrite(str(file), example["image"][..., ::-1])
    for name in wanted:
        prepare_folder(folder / "pictures" / name, name, folder / "data")


if __name__ == "__main__":
    sys.exit(main())
