"""`googlenet-jax bench`: how fast a network trains or infers here, compared with PyTorch and the
machine's floor.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from googlenet_jax.cli.members import add

OURS, COMPILED = "googlenet_jax", "torch_compiled"
DTYPES = ("float32", "bfloat16")
PEERS = {"torch": ("torch", COMPILED)}  # the faster of both is the peer


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="speed of training or inference, compared with PyTorch",
        description="Times a network's steps and the machine's floor below them; with --peer the "
        "other framework too, each side in processes of its own, in turn.",
    )
    parser.add_argument("what", choices=("train", "infer"), help="inference has batch norm folded")
    parser.add_argument("model", metavar="MODEL", help="a model's name, such as googlenet_bn")
    add(parser, "--batch-size", default=32)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: float32")
    parser.add_argument("--peer", choices=tuple(PEERS), help="another framework, measured in turn")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--steps", type=int, default=8, metavar="N", help="timed in each process (default: 8)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="processes of each side (default: 2)"
    )
    parser.add_argument(
        "--layers", action="store_true", help="of training: time and floor of each layer alone"
    )
    add(parser, "--json")
    # Of a process that measures one side.
    sides = (OURS, "layers", *itertools.chain(*PEERS.values()))
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)


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
    """Refuses here what each process would refuse: a model or peer that there is not; and what
    `--layers` does not do.
    """
    from googlenet_jax.errors import UserError
    from googlenet_jax.models.registry import create_model

    create_model(args.model)
    if args.layers and (args.peer or args.what != "train"):
        raise UserError("--layers: expected `bench train MODEL` without --peer")
    if args.peer:
        try:
            from googlenet_jax.profiling.torch_speed import create, whose
        except ImportError:
            raise UserError("--peer torch: PyTorch is not installed: pip install torch") from None
        create(args.model)
        print(f"peer: {whose(args.model)}", file=sys.stderr)


def _measure(args: argparse.Namespace) -> Any:
    """What a process of one side does."""
    from googlenet_jax.runtime.process import prepare

    train = args.what == "train"
    settings = {"train": train, "batch_size": args.batch_size, "steps": args.steps}
    tuned = prepare()  # both sides have the same allocator
    if args.side.startswith("torch"):
        from googlenet_jax.models.registry import create_model
        from googlenet_jax.profiling.torch_speed import time_peer

        size, compiled = create_model(args.model).input_size, args.side == COMPILED
        timing = time_peer(args.model, **settings, size=size, dtype=args.dtype, compiled=compiled)
        return dataclasses.asdict(timing)
    from googlenet_jax.models.registry import create_model
    from googlenet_jax.profiling import speed

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
        "tuned": tuned,
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
        hint = "; --no-compile leaves it out" if side == COMPILED else ""
        raise UserError(f"bench: the process of {side} ended with status {done.returncode}{hint}")
    return json.loads(done.stdout.splitlines()[-1])


def _layers(args: argparse.Namespace) -> dict[str, Any]:
    return {**_about(args), "layers": _child(args, "layers")}


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the sides in turn, A B A B …"""
    names = [OURS, *PEERS.get(args.peer, ())]
    if args.no_compile:
        names = [name for name in names if name != COMPILED]
    rounds: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            print(f"round {number + 1} of {args.rounds}: {name} …", file=sys.stderr)
            rounds[name].append(_child(args, name))
    _check_devices(rounds)
    sides = {name: _summed(each, args.batch_size) for name, each in rounds.items()}
    network = {"peer_network": _whose(args.model)} if args.peer else {}
    floor = _floor(rounds[OURS], sides[OURS], args.batch_size)
    return {**_about(args), **network, "sides": sides, **floor, **_ratio(sides, floor["device"])}


def _whose(model: str) -> str:
    from googlenet_jax.profiling.torch_speed import whose

    return whose(model)


def _check_devices(rounds: dict[str, list[Any]]) -> None:
    """Refuses a GPU beside a CPU: a JAX or a PyTorch that was installed without its GPU."""
    from googlenet_jax.errors import UserError

    devices = {name: each[0]["device"] for name, each in rounds.items()}
    if len({device == "cpu" for device in devices.values()}) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise UserError(f"--peer: expected both sides on one device, found {found}")


def _floor(rounds: list[Any], ours: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The machine at its best in these rounds, and our share of what it allows."""
    first, rates = rounds[0], [name for name in rounds[0] if name.endswith("_second")]
    machine = {name: max(each[name] for each in rounds) for name in rates}
    images = batch_size * machine["peak_operations_per_second"] / first["operations"]
    result = {
        "device": first["device"],
        "tuned": first["tuned"],
        "machine": machine,
        "operations": first["operations"],
        "floor_images_per_second": images,
        "fraction_of_floor": ours["images_per_second"] / images,
    }
    if first["device"] == "cpu":
        # Where other work runs beside, CPU seconds tell more than wall time.
        floor = first["operations"] / machine["peak_operations_per_cpu_second"]
        result["fraction_of_floor_by_cpu_seconds"] = floor / ours["cpu_seconds"]
    return result


def _ratio(sides: dict[str, Any], device: str) -> dict[str, Any]:
    """Ours to the faster of the peer's sides."""
    ours, peers = sides[OURS], {name: side for name, side in sides.items() if name != OURS}
    if not peers:
        return {}
    best = max(peers, key=lambda name: peers[name]["images_per_second"])
    rate = ours["images_per_second"] / peers[best]["images_per_second"]
    result = {"peer": best, "ratio": rate}
    if device == "cpu":
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
    from googlenet_jax.runtime.versions import processor, versions

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = {name: getattr(args, name) for name in ("what", "model", "batch_size", "dtype")}
    return {
        **about,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_before": load,  # of other work: above zero, wall times are longer than they need be
        "versions": versions(("jax", "flax", "torch", "torchvision")),
    }


def _text(result: dict[str, Any]) -> str:
    head = f"{result['what']} {result['model']}, batch {result['batch_size']}, {result['dtype']}"
    lines = [f"{head}, on {result['cores']} cores ({result['cpu']})", ""]
    lines += _layer_lines(result) if "layers" in result else _side_lines(result)
    return "\n".join(lines)


def _layer_lines(result: dict[str, Any]) -> list[str]:
    kinds = ("forward_{}", "forward_floor_{}", "backward_{}", "backward_floor_{}")
    heads = "".join(f"{head:>10}" for head in ("forward", "floor", "backward", "floor"))
    lines = [f"{'':16}{'milliseconds':>40}{'of CPU time':>40}", f"{'':16}{heads}{heads}"]
    for row in result["layers"]:
        values = [row[kind.format(unit)] for unit in ("ms", "cpu_ms") for kind in kinds]
        lines.append(f"{row['name']:16}{''.join(f'{value:8.1f}' for value in values)}")
    return lines


def _side_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{'':16}{'images/s':>9}{'CPU s/step':>12}{'compile s':>11}{'memory GB':>11}"]
    for name, side in result["sides"].items():
        compile_seconds = statistics.median(side["compile_seconds"])
        figures = f"{side['images_per_second']:9.1f}{side['cpu_seconds']:12.2f}"
        lines.append(f"{name:16}{figures}{compile_seconds:11.1f}{side['peak_gigabytes']:11.2f}")
    floor, fraction = result["floor_images_per_second"], result["fraction_of_floor"]
    peak = result["machine"]["peak_operations_per_second"] / 1e9
    lines += ["", f"floor {floor:.1f} images/s at {peak:.0f} GFLOP/s: {100 * fraction:.0f} % of it"]
    if "fraction_of_floor_by_cpu_seconds" in result:
        by_cpu = 100 * result["fraction_of_floor_by_cpu_seconds"]
        lines[-1] += f" ({by_cpu:.0f} % by CPU seconds)"
    if "ratio" in result:
        lines.append(f"{result['ratio']:.2f} × {result['peer']}")
    if "ratio_by_cpu_seconds" in result:
        lines[-1] += f" ({result['ratio_by_cpu_seconds']:.2f} × by CPU seconds)"
    lines.append(f"set for both sides: {', '.join(result['tuned']) or 'nothing'}")
    return lines
