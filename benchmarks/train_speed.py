"""Training speed of `googlenet_bn` beside a plain linen form of the same network: `python -m
benchmarks train_speed [--batch-size 32]`.

Each form runs in processes of its own, in turn (A B A B …), with the same allocator setting,
optimizer and losses. Prints JSON: images a second of each round, medians and their ratio.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

FORMS = ("ours", "plain_linen")


def measure(form: str, batch_size: int, steps: int) -> dict[str, float]:
    """Compiles one training step and times it; returns images/s (of the median step) and the
    seconds of compilation.
    """
    from googlenet_jax.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.plain_linen import PlainGoogLeNetBN
    from googlenet_jax import create_model

    model: Any = PlainGoogLeNetBN() if form == "plain_linen" else create_model("googlenet_bn")
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch_size, 224, 224, 3))
    labels = jnp.arange(batch_size) % 1000
    keys = {"params": key, "dropout": key}
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    variables = jax.jit(
        lambda: model.init(keys, images[:1], train=form != "ours"), compiler_options=options
    )()
    optimizer = optax.sgd(0.01, 0.9)

    def loss_fn(params: Any, statistics_: Any) -> tuple[jax.Array, Any]:
        applied = {"params": params, "batch_stats": statistics_}
        output, updated = model.apply(
            applied, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        heads = output if form == "plain_linen" else [output.logits, *output.aux_logits.values()]
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            for logits in heads
        ]
        return losses[0] + 0.3 * sum(losses[1:]), updated["batch_stats"]

    def step(params: Any, statistics_: Any, state: Any) -> Any:
        (_, statistics_), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics_)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics_, state

    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*carry).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        carry = jax.block_until_ready(compiled(*carry))
        seconds.append(time.perf_counter() - start)
    return {
        "images_per_second": batch_size / statistics.median(seconds[1:]),
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        print(json.dumps(measure(args.form, args.batch_size, args.steps)))
        return
    rounds: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for number in range(args.rounds):
        for form in FORMS:
            print(f"round {number + 1} of {args.rounds}: {form} …", file=sys.stderr)
            command = [sys.executable, "-m", "benchmarks.train_speed", "--form", form]
            command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
            rounds[form].append(
                json.loads(
                    subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                )
            )
    speed = {
        form: statistics.median(entry["images_per_second"] for entry in entries)
        for form, entries in rounds.items()
    }
    report = {
        "batch_size": args.batch_size,
        "images_per_second": speed,
        "ratio": speed["ours"] / speed["plain_linen"],
        "rounds": rounds,
        **hardware(),
    }
    print(json.dumps(report, indent=2))


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    import os

    import flax
    import jax

    with open("/proc/cpuinfo") as lines:
        cpu = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
            platform.processor(),
        )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


if __name__ == "__main__":
    main()
