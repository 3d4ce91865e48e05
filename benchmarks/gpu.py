"""All that is to be known of a GPU, in one command of under eight minutes, once one is at hand:

    python -m benchmarks gpu OUT.json [--minutes 8] [--rehearse]

It writes OUT.json and OUT.md (a table) after every part, begins with what matters most, and leaves
out what the time does not allow; the same command resumes it with what is missing. Each part runs
in a process of its own.

- machine: versions; operations a second of large products, bytes a second of a copy.
- speed: training and inference in bfloat16, batch 256, of three networks, ours beside torch.compile
  with channels_last and autocast; share of the floor.
- profile: the five kernels that take longest in a training step.
- parity: ours on the GPU beside PyTorch in float64 on the CPU, in float64 and in float32.
- deterministic: a short training twice with the config's `deterministic`; the weights' bits are
  compared.
- input: the share of the time that training waits for JPEGs to be decoded (`waiting`).

`--rehearse` runs every part with batches of 2 and one step, also on a CPU, whose figures say
nothing. benchmarks/gpu-requirements.txt lists the packages.
"""

import argparse
import collections
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NETWORKS = ("googlenet_bn", "inception_v3", "googlenet")
DTYPE = "bfloat16"
OURS, THEIRS = "googlenet_jax", "torch_compiled"
KERNELS = 5
PARITY_DTYPES, PARITY_KINDS = ("float64", "float32"), ("endpoints", "gradients")
PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "flax", "optax", "numpy", "torch", "torchvision")


@dataclasses.dataclass(frozen=True)
class Settings:
    batch_size: int = 256
    steps: int = 20
    rounds: int = 30  # steps of the deterministic run
    pictures: int = 4096


REHEARSAL = Settings(batch_size=2, steps=1, rounds=2, pictures=8)
# The most important first: what is late may be left out.
PARTS = (
    "machine",
    *(f"speed train googlenet_bn {side}" for side in (OURS, THEIRS)),
    *(f"parity {name}" for name in NETWORKS),
    "deterministic",
    "profile googlenet_bn",
    *(f"speed infer googlenet_bn {side}" for side in (OURS, THEIRS)),
    *(
        f"speed {what} {NETWORKS[1]} {side}"
        for what in ("train", "infer")
        for side in (OURS, THEIRS)
    ),
    "input",
    *(
        f"speed {what} {NETWORKS[2]} {side}"
        for what in ("train", "infer")
        for side in (OURS, THEIRS)
    ),
)


# ------------------------------------------------------------------------------------------- parts


def machine(settings: Settings) -> dict[str, Any]:
    """Versions, the device, and its rates in bfloat16 and float32 (by default XLA's TF32)."""
    import jax

    from googlenet_jax.profiling import speed
    from googlenet_jax.runtime.versions import versions

    device = jax.local_devices()[0]
    rates = {dtype: speed.machine(dtype) for dtype in (DTYPE, "float32")}
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "versions": versions(PACKAGES),
        **rates,
    }


def speed_of(settings: Settings, what: str, name: str, side: str) -> dict[str, Any]:
    """Seconds of steps of one side, and of ours the operations and the profile's kernels."""
    from googlenet_jax.models.registry import create_model

    train = what == "train"
    options = {"train": train, "batch_size": settings.batch_size, "steps": settings.steps}
    model = create_model(name, dtype=DTYPE)
    if side == THEIRS:
        from googlenet_jax.profiling.torch_speed import time_peer

        size = model.input_size
        timing = time_peer(name, **options, size=size, dtype=DTYPE, compiled=True)
        return dataclasses.asdict(timing)
    from googlenet_jax.profiling import speed

    step, seconds = speed.compile_step(model, train=train, batch_size=settings.batch_size)
    timing = speed.time_compiled(step, seconds, settings.steps)
    summary = speed.summarize(model, model.input_size)
    operations = speed.operations(summary, train=train, batch_size=settings.batch_size)
    return {**dataclasses.asdict(timing), "operations": operations}


def profile(settings: Settings, name: str) -> dict[str, Any]:
    """The kernels that take longest in a profile of three training steps: name, share of all,
    milliseconds a step.
    """
    import jax

    from googlenet_jax.models.registry import create_model
    from googlenet_jax.profiling import speed

    model, count = create_model(name, dtype=DTYPE), 3
    step, seconds = speed.compile_step(model, train=True, batch_size=settings.batch_size)
    speed.time_compiled(step, seconds, 1)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                step()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        spent = _nanoseconds(jax.profiler.ProfileData.from_file(path))
    total = sum(spent.values())
    kernels = [
        {"name": kernel, "share": each / total, "ms": each / 1e6 / count}
        for kernel, each in spent.most_common(KERNELS)
    ]
    return {"kernels": kernels}


def _nanoseconds(profile: Any) -> collections.Counter[str]:
    """What a profile's kernels took; on a CPU, what XLA's threads did."""
    planes = list(profile.planes)
    of_device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    spent: collections.Counter[str] = collections.Counter()
    for plane in of_device or planes:
        for line in plane.lines:
            # On a GPU "XLA Ops" and the like tell the streams' time once more.
            if line.name.startswith("Stream") if of_device else "XLA" in line.name:
                for event in line.events:
                    spent[event.name] += event.duration_ns
    return spent


def parity(settings: Settings, name: str) -> dict[str, Any]:
    """The largest relative errors of endpoints and gradients, by dtype; float32 without TF32."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    import torch

    from googlenet_jax.verification import reference
    from tests.parity.harness import WITH_AUX_DROPOUT, images, make_pair

    options: dict[str, Any] = {"width": 0.25, "dropout": 0.0, "num_classes": 10}
    options |= {"aux_dropout": 0.0} if name in WITH_AUX_DROPOUT else {"aux_heads": False}
    size = 139 if name == "inception_v3" else 97
    network, model, variables = make_pair(name, **options)
    batch = images(size, 6) / 64.0 - 1.5
    nchw = torch.from_numpy(batch).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = reference.endpoints(network.eval(), nchw)
    labels = torch.arange(len(batch))
    losses = [torch.nn.functional.cross_entropy(v, labels) for v in network.train()(nchw).values()]
    sum(losses).backward()
    endpoints = {key: value.numpy() for key, value in theirs.items()}
    gradients = {key: value.grad.numpy() for key, value in network.named_parameters()}
    return {
        dtype: _errors(
            model.clone(dtype=dtype, param_dtype=dtype), variables, batch, endpoints, gradients
        )
        for dtype in PARITY_DTYPES
    }


def _errors(
    model: Any, variables: Any, batch: Any, endpoints: dict[str, Any], gradients: dict[str, Any]
) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import googlenet_jax as gj

    def cast(value: Any) -> Any:  # counters stay whole numbers
        floats = jnp.issubdtype(np.asarray(value).dtype, jnp.floating)
        return jnp.asarray(value, model.dtype if floats else None)

    variables, x = jax.tree.map(cast, (variables, batch))
    found = gj.endpoints(model, variables, x)

    def loss(params: Any) -> Any:
        output, _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        heads = [output.logits, *output.aux_logits.values()]
        labels = jnp.arange(len(x))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return sum(cross_entropy(logits, labels).mean() for logits in heads)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    ours = gj.weights.to_torch(model, jax.tree.map(np.asarray, {**variables, "params": grads}))

    def largest(ours: Any, theirs: dict[str, Any], least: float) -> float:
        norm = np.linalg.norm
        return max(
            float(norm(np.asarray(ours[key], np.float64) - value) / max(norm(value), least))
            for key, value in theirs.items()
        )

    # A bias before batch norm has no gradient but rounding: it is held to the largest one.
    scale = max(np.linalg.norm(value) for value in gradients.values())
    return {
        "endpoints": largest(found, endpoints, 0.0),
        "gradients": largest(ours, gradients, 1e-6 * scale),
    }


def deterministic(settings: Settings) -> dict[str, Any]:
    """Trains a narrow network on the digits twice, and compares the weights' bits."""
    import numpy as np
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        weights = []
        for number in range(2):
            run, path = f"{folder}/{number}", f"{folder}/{number}.safetensors"
            fields = [f"--config.duration={settings.rounds} steps", "--config.deterministic=True"]
            fields += [
                "--config.schedule.warmup=0 steps",
                f"--config.dtype={DTYPE}",
                f"--config.data.dir={folder}/data",
            ]
            _command("train", "--config=digits", f"--workdir={run}", *fields)
            _command("convert", run, path)
            weights.append(load_file(path))
        first, second = weights
        differ = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    finite = all(np.isfinite(value).all() for value in first.values())
    return {
        "equal": not differ,
        "tensors": len(first),
        "differ": len(differ),
        "finite": bool(finite),
    }


def waiting(settings: Settings) -> dict[str, Any]:
    """What `waiting` prints, on JPEGs of 500 × 375 cut from real photographs."""
    from benchmarks.input import photographs

    workers = max(1, (os.cpu_count() or 1) - 1)
    with tempfile.TemporaryDirectory() as folder:
        encoded = photographs(min(64, settings.pictures))
        for number in range(settings.pictures):
            path = Path(folder, "pictures", str(number % 2), f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[number % len(encoded)])
        data = f"{folder}/data"
        _command("prepare", "folder", f"{folder}/pictures", "--name=pictures", f"--data-dir={data}")
        options = [
            f"--steps={settings.steps}",
            f"--batch-size={min(settings.batch_size, settings.pictures // 2)}",
        ]
        command = ["-m", "benchmarks.waiting", "pictures", "train", f"--data-dir={data}"]
        text = _python(*command, *options, f"--workers={workers}", f"--dtype={DTYPE}")
    return json.loads(text.splitlines()[-1])


def _command(*arguments: str) -> None:
    _python("-m", "googlenet_jax", *arguments)


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def measure(part: str, settings: Settings) -> dict[str, Any]:
    """What the process of one part does."""
    from googlenet_jax.runtime.process import prepare

    kind, *arguments = part.split()
    if kind != "parity":  # in which XLA's own settings count
        prepare()
    functions = {
        "machine": machine,
        "speed": speed_of,
        "profile": profile,
        "parity": parity,
        "deterministic": deterministic,
        "input": waiting,
    }
    return functions[kind](settings, *arguments)


# ---------------------------------------------------------------------------------------- together


def run(path: Path, minutes: float, rehearse: bool) -> None:
    """Measures what OUT.json lacks, one process after another."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    end = time.monotonic() + 60 * minutes

    for part in PARTS:
        left = end - time.monotonic()
        if "error" not in results.get(part, {"error": "not measured"}):
            continue
        if left < 10:
            print(f"{part}: no time is left", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", str(path), "--part", part]
        command += ["--rehearse"] if rehearse else []
        start = time.monotonic()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left)
            status = f"ended with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            status = "the time was over"
        results[part] = {"error": status} if status else json.loads(done.stdout.splitlines()[-1])
        results[part]["wall_seconds"] = round(time.monotonic() - start, 1)
        print(f"{part}: {status or 'done'}, {results[part]['wall_seconds']} s", file=sys.stderr)
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(results))


def table(results: dict[str, Any]) -> str:
    """Markdown of what has been measured."""
    found = {part: each for part, each in results.items() if "error" not in each}
    missing = [part for part in PARTS if part not in found]
    lines = ["# A GPU", "", *_machine_lines(found), "", *_speed_lines(found), ""]
    lines += [*_parity_lines(found), "", *_other_lines(found), ""]
    return "\n".join([*lines, f"Not measured: {', '.join(missing) or 'nothing'}.", ""])


def _machine_lines(found: dict[str, Any]) -> list[str]:
    if "machine" not in found:
        return []
    about = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [f"{about['device']}, {about['cores']} cores; {versions}.", ""]
    for dtype in (DTYPE, "float32"):
        tera = about[dtype]["peak_operations_per_second"] / 1e12
        giga = about[dtype]["copy_bytes_per_second"] / 1e9
        lines.append(f"- {dtype}: {tera:.2f} T operations/s; a copy {giga:.0f} GB/s")
    return lines


def _speed_lines(found: dict[str, Any]) -> list[str]:
    heads = ("", "images/s", "ratio", "of the floor", "compile, s", "peak memory, GB")
    lines = [f"{DTYPE}, ours / torch.compile:", "", _cells(heads), "|---" * len(heads) + "|"]
    peak = found.get("machine", {}).get(DTYPE, {}).get("peak_operations_per_second")
    for name, what in itertools.product(NETWORKS, ("train", "infer")):
        ours, theirs = (found.get(f"speed {what} {name} {side}") for side in (OURS, THEIRS))
        if not ours:
            continue
        sides = [each for each in (ours, theirs) if each]
        seconds = [statistics.median(each["seconds"]) for each in sides]
        both = lambda values, form: " / ".join(f"{value:{form}}" for value in values)  # noqa: E731
        row = [
            f"{what} `{name}`, batch {ours['batch_size']}",
            both((ours["batch_size"] / each for each in seconds), ".0f"),
            f"{seconds[1] / seconds[0]:.2f}" if theirs else "–",
            f"{100 * ours['operations'] / peak / seconds[0]:.0f} %" if peak else "–",
            both((each["compile_seconds"] for each in sides), ".0f"),
            both((each["peak_bytes"] / 1e9 for each in sides), ".1f"),
        ]
        lines.append(_cells(row))
    return lines


def _parity_lines(found: dict[str, Any]) -> list[str]:
    heads = ("largest relative error", "float64: endpoints", "gradients")
    heads += ("float32: endpoints", "gradients")
    lines = [_cells(heads), "|---" * len(heads) + "|"]
    for name in NETWORKS:
        if errors := found.get(f"parity {name}"):
            each = (errors[dtype][kind] for dtype in PARITY_DTYPES for kind in PARITY_KINDS)
            lines.append(_cells([f"`{name}`", *(f"{error:.1e}" for error in each)]))
    return lines


def _other_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if same := found.get("deterministic"):
        lines.append(
            f"`deterministic`, twice: {same['differ']} of {same['tensors']} tensors differ."
        )
    if share := found.get("input"):
        percent = 100 * share["waiting_share_at_most"]
        lines.append(f"Waiting for input: {percent:.0f} % of the time, {share['workers']} workers.")
    for part, each in found.items():
        if kernels := each.get("kernels"):
            lines += ["", f"{part}: what takes longest, ms a step and its share", ""]
            for kernel in kernels:
                share = f"{kernel['ms']:.2f} ({100 * kernel['share']:.0f} %)"
                lines.append(f"- {share} `{kernel['name'][:70]}`")
    return lines


def _cells(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="OUT.json")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rehearse", action="store_true", help="batches of 2 and one step")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.part:
        run(args.path, args.minutes, args.rehearse)
        return
    settings = REHEARSAL if args.rehearse else Settings()
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args.part, settings)
    print(json.dumps({**result, "batch_size": settings.batch_size}))


if __name__ == "__main__":
    main()
