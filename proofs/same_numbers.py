"""Does this checkout compute the same numbers as another one, bit for bit?

    python -m proofs same_numbers --other DIR [--only models run files] [--json]

Each checkout runs in processes of its own, with its `.venv` where it has one. Compared are, as
SHA-256 of the bytes: parameters, outputs in evaluation and in training, batch statistics and
gradients of every network and flavour, narrow; the state and the lines of a run of
configs/digits.py that SIGTERM stops and a second start resumes; and the files that `convert` writes
of that run and of foreign files, their arrays and what they carry along apart. Prints what differs;
exit status 1 if anything does. Some ten minutes on 2 cores.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "run", "files")
STEPS, STOPPED_AFTER = 200, 20


def main() -> None:
    """Compares two checkouts, or computes what one of them has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="models: these alone")
    parser.add_argument("--json", action="store_true", help="print all hashes")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe, args.only, args.networks)))
        return
    if args.other is None:
        parser.error("--other is missing")
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = (
            numbers_of(checkout, Path(folder), args.only, args.networks)
            for checkout in (args.other, ROOT)
        )
    different = sorted(
        name
        for name in reference.keys() | candidate.keys()
        if reference.get(name) != candidate.get(name)
    )
    if args.json:
        print(json.dumps({"reference": reference, "candidate": candidate}, indent=1))
    for name in different:
        here, there = name in candidate, name in reference
        print(f"{name}: {'differs' if here and there else 'only here' if here else 'only there'}")
    print(f"{len(candidate)} compared with {args.other}, {len(different)} differ")
    sys.exit(bool(different))


def numbers_of(
    checkout: Path, folder: Path, parts: list[str], chosen: list[str] | None
) -> dict[str, str]:
    """What a checkout computes: name → hash."""
    own = checkout / ".venv/bin/python"
    done = subprocess.run(
        [
            str(own) if own.exists() else sys.executable,
            __file__,
            "--only",
            *parts,
            *(["--networks", *chosen] if chosen else []),
            f"--probe={folder / ('candidate' if checkout == ROOT else 'reference')}",
        ],
        cwd=checkout,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout),
            "JAX_PLATFORMS": "cpu",
            # One program for both, where both ask for the same one: it is compiled once.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def probe(folder: Path, parts: list[str], chosen: list[str] | None) -> dict[str, str]:
    """The hashes of the checkout that Python imports from."""
    import googlenet_jax

    print(f"same_numbers: {Path(googlenet_jax.__file__).parents[1]}", file=sys.stderr)
    folder.mkdir(parents=True)
    found: dict[str, str] = {}
    if "models" in parts:
        found |= of_models(chosen)
    if "run" in parts:
        found |= of_run(folder / "run")
    if "files" in parts:
        found |= of_files(folder)
    return found


def hash_of(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a tree's arrays."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def networks() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every network and flavour, narrow: what it is called here → name and options."""
    from googlenet_jax.models import registry

    found = {}
    for name in registry.list_models():
        kind = type(registry.create_model(name))
        narrow = {"base_dim": 8} if name == "googlenet_plain" else {"width": 0.125}
        for flavour in kind.flavours or (None,):
            options = narrow | ({} if flavour is None else {"flavour": flavour})
            found[f"{name} {flavour or ''}".strip()] = (name, options)
    return found


def random_variables(model: Any, size: int) -> tuple[Any, str]:
    """A network's variables in which no bias, scale or statistic is zero or one, and the hash of
    those that it begins with.
    """
    import jax
    import jax.numpy as jnp

    images = jnp.zeros((2, size, size, 3))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    initial = jax.jit(lambda: model.init(keys, images, train=False))()
    leaves, tree = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.1 * jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved), hash_of(initial)


def of_models(chosen: list[str] | None) -> dict[str, str]:
    """Each network's parameters, outputs, statistics and gradients."""
    import jax
    import jax.numpy as jnp

    import googlenet_jax as gj

    found = {}
    for label, (name, options) in networks().items():
        if chosen and name not in chosen:
            continue
        print(f"same_numbers: {label}", file=sys.stderr)
        model = gj.create_model(name, num_classes=7, **options)
        size = 299 if name in ("inception_v2", "inception_v3") else max(64, model.min_size)
        variables, found[f"{label}: initial variables"] = random_variables(model, size)
        images = jax.random.normal(jax.random.key(3), (2, size, size, 3))
        output = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(variables, images)
        found[f"{label}: evaluation"] = hash_of((output.logits, output.aux_logits))

        def loss(params: Any, model: Any = model, v: Any = variables, x: Any = images) -> Any:
            output, updated = model.apply(
                {**v, "params": params},
                x,
                train=True,
                rngs={"dropout": jax.random.key(4)},
                mutable=["batch_stats"],
            )
            logits = [output.logits, *output.aux_logits.values()]
            return sum(jnp.square(one).mean() for one in logits), (output, updated)

        gradients, (output, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        found[f"{label}: training"] = hash_of((output.logits, output.aux_logits))
        found[f"{label}: batch statistics"] = hash_of(updated)
        found[f"{label}: gradients"] = hash_of(gradients)
    return found


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A command of the checkout that this process imports from."""
    command = [sys.executable, "-m", "googlenet_jax", *arguments]
    environment = {**os.environ, "GOOGLENET_JAX_TUNING": "0"}
    return subprocess.Popen(command, stdout=sys.stderr, env=environment)


def train_digits(workdir: Path) -> None:
    """A run of STEPS steps, stopped once after its first checkpoint and resumed."""
    arguments = [
        "train",
        "--config=digits",
        f"--workdir={workdir}",
        f"--config.data.dir={workdir.parent / 'data'}",
        f"--config.duration={STEPS} steps",
        "--config.batch_size=16",
        "--config.schedule.warmup=4 steps",
        f"--config.checkpoint_every={STOPPED_AFTER} steps",
        f"--config.eval_every={STOPPED_AFTER} steps",
        "--config.model.options.width=0.125",
    ]
    first = start(*arguments)
    while first.poll() is None and not (workdir / "checkpoints" / str(STOPPED_AFTER)).exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    if first.wait():
        raise SystemExit("the first start has failed")
    if (workdir / "checkpoints" / str(STEPS)).exists():
        raise SystemExit("the run was finished before it was stopped")
    if start(*arguments).wait():
        raise SystemExit("the second start has failed")


def of_run(workdir: Path) -> dict[str, str]:
    """The state at the end of a run that was resumed, array by array, and its lines."""
    import numpy as np
    import orbax.checkpoint as ocp

    train_digits(workdir)
    path = workdir / "checkpoints" / str(STEPS) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(path).item_metadata.tree
        plain = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        state = reader.restore(path, restore_args=plain)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    found = {f"run: {name}": hash_of(array) for name, array in state.items()}
    return {**found, "run: lines": hashlib.sha256(json.dumps(lines).encode()).hexdigest()}


def of_files(folder: Path) -> dict[str, str]:
    """The files of `convert`: from a run to each kind, and from each of these back."""
    import torch

    import googlenet_jax as gj

    run = folder / "run"
    if not run.exists():
        train_digits(run)
    sources: dict[str, tuple[Path, list[str]]] = {"run": (run, [])}
    for name, flavour in (("googlenet_torchvision", None), ("inception_v3", "torchvision")):
        options = {"width": 0.125, **({"flavour": flavour} if flavour else {})}
        model = gj.create_model(name, num_classes=7, **options)
        path = folder / f"{name}.pth"
        variables, _ = random_variables(model, max(75, model.min_size))
        names = gj.weights.to_torch(model, variables)
        torch.save({k: torch.from_numpy(v.copy()) for k, v in names.items()}, path)
        flags = ["--model", name, "--option", "width=0.125"]
        sources[name] = path, [*flags, *(["--flavour", flavour] if flavour else [])]
    found: dict[str, str] = {}
    for label, (source, flags) in sources.items():
        ours = folder / f"{label}-ours.safetensors"
        _convert(source, ours, flags, found)
        theirs = folder / f"{label}-theirs.safetensors"
        _convert(ours, theirs, ["--to", "safetensors"], found)
        _convert(ours, folder / f"{label}-theirs.pth", [], found)
    keras = gj.create_model("inception_v3", flavour="keras", width=0.125, num_classes=7)
    ours = folder / "keras-ours.safetensors"
    gj.save_weights(ours, keras, random_variables(keras, 75)[0])
    h5 = folder / "keras-theirs.weights.h5"
    _convert(ours, h5, [], found)
    more = ["--model", "inception_v3", "--flavour", "keras", "--option", "width=0.125"]
    _convert(h5, folder / "keras-back.safetensors", more, found)
    return found


def _convert(source: Path, goal: Path, flags: list[str], found: dict[str, str]) -> None:
    if start("convert", str(source), str(goal), *flags).wait():
        raise SystemExit(f"convert {source.name} {goal.name} has failed")
    for part, value in _content(goal).items():
        found[f"convert {source.name} {goal.name}: {part}"] = hash_of(value)


def _content(path: Path) -> dict[str, Any]:
    """What is in a file: its arrays by name, and, of safetensors, what it carries along."""
    import h5py
    import numpy as np
    import torch
    from safetensors import safe_open

    if path.suffix == ".pth":
        state = torch.load(path, weights_only=True)
        return {"arrays": {name: value.numpy() for name, value in state.items()}}
    if path.suffix == ".h5":
        arrays: dict[str, Any] = {}

        def keep(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[name] = item[()]

        with h5py.File(path) as file:
            file.visititems(keep)
        return {"arrays": arrays}
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # A run's folder lies elsewhere in each checkout.
        text = re.sub(r'/[^"\\ ]*/', "", json.dumps(file.metadata(), sort_keys=True))
    return {"arrays": arrays, "what it carries": np.frombuffer(text.encode(), np.uint8)}


if __name__ == "__main__":
    main()
