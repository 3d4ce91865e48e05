"""`googlenet-jax bench`: how fast a network trains or infers here, beside PyTorch and the machine's
floor.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PEERS = {"torch": ("torch", "torch_compiled")}  # the faster of both is the peer


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("bench", help="speed of training or inference, beside PyTorch")
    parser.add_argument("what", choices=("train", "infer"), help="inference has batch norm folded")
    parser.add_argument("model", metavar="MODEL", help="a model's name, such as googlenet_bn")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer", choices=tuple(PEERS), help="another framework, measured in turn")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="timed in each process")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="processes of each side")
    parser.add_argument("--layers", action="store_true", help="time and floor of each layer alone")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a process that measures one side


def run(args: argparse.Namespace) -> int:
    """Prints the figures; returns 0."""
    from googlenet_jax.errors import check_whole

    for name in ("batch_size", "steps", "rounds"):
        check_whole(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    if args.side:
        print(json.dumps(_measure(args)))
        return 0
    _check(args)
    result = _layers(args) if args.layers else _compare(args)
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else _text(result))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses here what each process would refuse: a model or peer that there is not."""
    from googlenet_jax.errors import UserError
    from googlenet_jax.models.registry import create_model

    create_model(args.model)
    if args.peer:
        try:
            from googlenet_jax.verification.torch_speed import create
        except ImportError:
            raise UserError("--peer torch: PyTorch is not installed: pip install torch") from None
        create(args.model)


def _measure(args: argparse.Namespace) -> Any:
    """What a process of one side does."""
    from googlenet_jax.training.process import TUNING, prepare, say_settings

    train = args.what == "train"
    settings = {"train": train, "batch_size": args.batch_size, "steps": args.steps}
    prepare()  # both sides have the same allocator
    if args.side.startswith("torch"):
        from googlenet_jax.models.registry import create_model
        from googlenet_jax.verification.torch_speed import time_peer

        size, compiled = create_model(args.model).input_size, args.side == "torch_compiled"
        timing = time_peer(args.model, **settings, size=size, dtype=args.dtype, compiled=compiled)
        return dataclasses.asdict(timing)
    from googlenet_jax.models.registry import create_model
    from googlenet_jax.verification import speed

    say_settings()
    model = create_model(args.model, dtype=args.dtype)
    if args.side == "layers":
        rows, rates = [], speed.machine(args.dtype)
        for row in speed.time_layers(
            model, batch_size=args.batch_size, rates=rates, steps=args.steps
        ):
            print(f"{row['name']} …", file=sys.stderr)
            rows.append(row)
        return rows
    timing = speed.time_network(model, **settings)
    summary = speed.summarize(model, model.input_size)
    return {
        **dataclasses.asdict(timing),
        **speed.machine(args.dtype),
        "operations": speed.operations(summary, train=train, batch_size=args.batch_size),
        "tuned": os.environ.get(TUNING, "1"),
    }


def _child(args: argparse.Namespace, side: str) -> Any:
    """Measures one side in a process of its own."""
    from googlenet_jax.errors import UserError

    command = [sys.executable, "-m", "googlenet_jax"]
    for module in [*args.imports_before, *args.imports]:
        command.append(f"--import={module}")
    command += ["bench", args.what, args.model, "--side", side, "--dtype", args.dtype]
    command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"bench: the process of {side} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _layers(args: argparse.Namespace) -> dict[str, Any]:
    return {**_about(args), "layers": _child(args, "layers")}


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the sides in turn, A B A B …"""
    sides = ["googlenet_jax", *PEERS.get(args.peer, ())]
    if args.no_compile:
        sides = [side for side in sides if side != "torch_compiled"]
    rounds: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides:
            print(f"round {number + 1} of {args.rounds}: {side} …", file=sys.stderr)
            rounds[side].append(_child(args, side))
    result = {**_about(args), "sides": {s: _summed(r, args.batch_size) for s, r in rounds.items()}}
    ours = result["sides"]["googlenet_jax"]
    first = rounds["googlenet_jax"]
    peak = max(each["peak_operations_per_second"] for each in first)
    floor = first[0]["operations"] / peak
    rates = [name for name in first[0] if name.endswith("_second")]
    result["machine"] = {name: max(each[name] for each in first) for name in rates}
    # Where other work runs beside, CPU seconds tell more than wall time.
    cpu_floor = first[0]["operations"] / result["machine"]["peak_operations_per_cpu_second"]
    result["fraction_of_floor_by_cpu_seconds"] = cpu_floor / ours["cpu_seconds"]
    result["operations"] = first[0]["operations"]
    result["floor_images_per_second"] = args.batch_size / floor
    result["fraction_of_floor"] = ours["images_per_second"] * floor / args.batch_size
    if peers := {name: side for name, side in result["sides"].items() if side is not ours}:
        best = max(peers, key=lambda name: peers[name]["images_per_second"])
        result["peer"] = best
        result["ratio"] = ours["images_per_second"] / peers[best]["images_per_second"]
        least = min(side["cpu_seconds"] for side in peers.values())
        result["ratio_by_cpu_seconds"] = least / ours["cpu_seconds"]
    return result


def _summed(rounds: list[Any], batch_size: int) -> dict[str, Any]:
    seconds = [second for each in rounds for second in each["seconds"]]
    median = statistics.median(seconds)
    return {
        "images_per_second": batch_size / median,
        "step_seconds": {"median": median, "least": min(seconds), "most": max(seconds)},
        "cpu_seconds": statistics.median(s for each in rounds for s in each["cpu_seconds"]),
        "compile_seconds": [each["compile_seconds"] for each in rounds],
        "peak_gigabytes": max(each["peak_bytes"] for each in rounds) / 1e9,
    }


def _about(args: argparse.Namespace) -> dict[str, Any]:
    """What was measured, on what, with which versions."""
    versions = {}
    for package in ("jax", "flax", "torch", "torchvision"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = {name: getattr(args, name) for name in ("what", "model", "batch_size", "dtype")}
    return {
        **about,
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": load,  # of other work: above zero, wall times are longer than they need be
        "versions": versions,
    }


def _text(result: dict[str, Any]) -> str:
    head = f"{result['what']} {result['model']}, batch {result['batch_size']}, {result['dtype']}"
    lines = [f"{head}, on {result['cores']} cores ({result['cpu']})", ""]
    if "layers" in result:
        kinds = ("forward_{}", "forward_floor_{}", "backward_{}", "backward_floor_{}")
        lines.append(f"{'':16}{'milliseconds':>40}{'of CPU time':>40}")
        lines.append(
            " " * 16 + 2 * "".join(f"{h:>10}" for h in ("forward", "floor", "backward", "floor"))
        )
        for row in result["layers"]:
            values = [row[kind.format(unit)] for unit in ("ms", "cpu_ms") for kind in kinds]
            lines.append(f"{row['name']:16}{''.join(f'{value:10.1f}' for value in values)}")
        return "\n".join(lines)
    lines.append(f"{'':16}{'images/s':>9}{'CPU s/step':>12}{'compile s':>11}{'memory GB':>11}")
    for name, side in result["sides"].items():
        compile_seconds = statistics.median(side["compile_seconds"])
        figures = f"{side['images_per_second']:9.1f}{side['cpu_seconds']:12.2f}"
        lines.append(f"{name:16}{figures}{compile_seconds:11.1f}{side['peak_gigabytes']:11.2f}")
    floor, fraction = result["floor_images_per_second"], result["fraction_of_floor"]
    peak = result["machine"]["peak_operations_per_second"] / 1e9
    lines += ["", f"floor {floor:.1f} images/s at {peak:.0f} GFLOP/s: {100 * fraction:.0f} % of it"]
    by_cpu = 100 * result["fraction_of_floor_by_cpu_seconds"]
    lines[-1] += f" ({by_cpu:.0f} % by CPU seconds)"
    if "ratio" in result:
        by_cpu = result["ratio_by_cpu_seconds"]
        lines.append(f"{result['ratio']:.2f} × {result['peer']} ({by_cpu:.2f} × by CPU seconds)")
    return "\n".join(lines)
