"""The figures of `docs/speed.md`: `python -m benchmarks speed run OUT.json`, then `… plot OUT.json
PNG`.

`run` calls `googlenet-jax bench` once a line of RUNS, each of which measures its sides in turn, and
writes one JSON file after every line, so that it may be stopped and begun again. `plot` draws it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# name → arguments of `bench`, and whether the processes are tuned as commands are.
RUNS: dict[str, tuple[str, bool]] = {
    "inference, batch 1": ("infer googlenet_bn --peer torch --batch-size 1 --steps 40", True),
    "inference, batch 32": ("infer googlenet_bn --peer torch", True),
    "training": ("train googlenet_bn --peer torch --no-compile --steps 6", True),
    "training, default allocator": (
        "train googlenet_bn --peer torch --no-compile --steps 6",
        False,
    ),
    "training googlenet": ("train googlenet --peer torch --no-compile --steps 6", True),
    "layers": ("train googlenet_bn --layers", True),
    "training, torch.compile too": (
        "train googlenet_bn --peer torch --steps 4 --rounds 1",
        True,
    ),
    "training inception_v3": ("train inception_v3 --peer torch --no-compile --steps 4", True),
    "inference googlenet": ("infer googlenet --peer torch --no-compile", True),
    "inference in bfloat16": (
        "infer googlenet_bn --peer torch --no-compile --dtype bfloat16 --steps 6 --rounds 1",
        True,
    ),
}


def run(path: Path) -> None:
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, (arguments, tuned) in RUNS.items():
        if name in results:
            continue
        print(f"{name} …", file=sys.stderr)
        command = [sys.executable, "-m", "googlenet_jax", "bench", *arguments.split(), "--json"]
        environment = os.environ | {"GOOGLENET_JAX_TUNING": "1" if tuned else "0"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            results[name] = json.loads(done.stdout)
            path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def plot(path: Path, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = json.loads(path.read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), width_ratios=(1, 1.2))
    compared = {name: each for name, each in results.items() if "ratio" in each}
    _draw_ratios(left, compared)
    _draw_layers(right, results["layers"]["layers"])
    about = next(iter(compared.values()))
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    figure.suptitle(f"{about['cores']} cores ({about['cpu']}), float32 where not said; {versions}")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def _draw_ratios(axes: Any, compared: dict[str, Any]) -> None:
    names = list(compared)
    for offset, key, label in (
        (-0.2, "ratio_by_cpu_seconds", "CPU time"),
        (0.2, "ratio", "wall time"),
    ):
        places = [place + offset for place in range(len(names))]
        values = [compared[name][key] for name in names]
        axes.barh(places, values, 0.36, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as PyTorch channels_last")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def _draw_layers(axes: Any, layers: list[dict[str, Any]]) -> None:
    rows = [row for row in layers if row["forward_cpu_ms"] + row["backward_cpu_ms"] > 1]
    names = [row["name"] for row in rows]
    forward = [row["forward_cpu_ms"] for row in rows]
    floor = [row["forward_floor_cpu_ms"] + row["backward_floor_cpu_ms"] for row in rows]
    axes.barh(names, forward, label="forward")
    axes.barh(names, [row["backward_cpu_ms"] for row in rows], left=forward, label="backward")
    axes.barh(names, floor, 0.25, color="black", label="floor: its products at the peak")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of CPU time, each layer by itself, batch 32")
    axes.legend()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["plot"]:
        plot(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(__doc__)
