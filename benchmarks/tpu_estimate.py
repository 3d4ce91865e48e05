"""The TPU compiler's own estimate of a training step, by form: `python -m benchmarks tpu_estimate`.

Needs `jax[tpu]` and no TPU: libtpu compiles ahead of time for a described one. The figures are the
compiler's (`cost_analysis`, `memory_analysis`), not measurements. One form of `models/ops.py` is
changed at a time, each in a process of its own. Prints JSON.
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

FORMS = (
    "as it is",
    "indexed max pool",
    "1×1 as convolutions",
    "1×1 as flat products",
    "plain batch norm",
)


# Published operations (bfloat16) and bytes a second of a chip.
PEAKS = {"v5e": (197e12, 819e9), "v6e": (918e12, 1640e9), "v5p": (459e12, 2765e9)}
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
ARRAY = re.compile(r" = (?:bf16|f32)\[([\d,]+)\]\{([\d,]+):T\(8,128\)")


def padding(text: str) -> float:
    """How much larger the compiled program's arrays are on tiles of 8×128 than by themselves."""
    own = tiled = 0
    for sizes, order in ARRAY.findall(text):
        shape = list(map(int, sizes.split(",")))
        own += math.prod(shape)
        for axis, tile in zip(map(int, order.split(",")), (128, 8), strict=False):
            shape[axis] = -(-shape[axis] // tile) * tile
        tiled += math.prod(shape)
    return tiled / own if own else 1.0


def choose(form: str) -> None:
    """Changes one form, for every platform."""
    from googlenet_jax.models import ops

    if form == "indexed max pool":
        ops.max_pool = ops._indexed_max_pool
    elif form == "1×1 as convolutions":
        ops.conv = ops.plain_conv
    elif form == "1×1 as flat products":
        ops._product = ops._flat_product
    elif form == "plain batch norm":
        fast = ops.batch_norm
        ops.batch_norm = lambda *args: fast(*args[:7], forms="plain")


def estimate(form: str, chip: str, model_name: str, batch_size: int, dtype: str) -> dict[str, Any]:
    """Compiles the training step for one chip; returns the compiler's figures."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from googlenet_jax import create_model

    choose(form)
    model = create_model(model_name, dtype=dtype)
    size = model.input_size
    topology = topologies.get_topology_desc(platform="tpu", topology_name=chip)
    sharding = SingleDeviceSharding(topology.devices[0])
    optimizer = optax.sgd(0.01, 0.9)

    def init(key: jax.Array) -> Any:
        images = jnp.zeros((1, size, size, 3))
        variables = model.init({"params": key, "dropout": key}, images, train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        return params, stats, optimizer.init(params)

    def step(state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        params, stats, opt_state = state

        def loss_fn(params: Any) -> Any:
            output, updated = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            heads = [output.logits, *output.aux_logits.values()]
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            losses = [cross_entropy(logits, labels).mean() for logits in heads]
            return losses[0] + 0.3 * sum(losses[1:]), updated.get("batch_stats", {})

        (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    arguments = (
        jax.eval_shape(init, key),
        jax.ShapeDtypeStruct((batch_size, size, size, 3), dtype),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        key,
    )
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments
    )
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(*placed).compile()
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    operations_peak, bytes_peak = PEAKS[chip.partition(":")[0]]
    floor = max(cost["flops"] / operations_peak, cost["bytes accessed"] / bytes_peak)
    optimal = cost.get("optimal_seconds", -1.0)
    text = compiled.as_text()
    return {
        "form": form,
        # Below zero where the compiler does not know the time of an operation.
        "optimal_milliseconds": 1e3 * optimal if optimal > 0 else None,
        "estimated_megacycles": sum(map(int, CYCLES.findall(text))) / 1e6,
        "floor_milliseconds": 1e3 * floor,
        "padding": padding(text),
        "tera_operations": cost["flops"] / 1e12,
        "gigabytes_accessed": cost["bytes accessed"] / 1e9,
        "gigabytes_temporary": memory.temp_size_in_bytes / 1e9,
        "compile_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="googlenet_bn")
    parser.add_argument("--chip", default="v5e:2x2", help="a topology, of which one chip is used")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    given = (args.chip, args.model, args.batch_size, args.dtype)
    if args.form:
        print(json.dumps(estimate(args.form, *given)))
        return
    rows = []
    for form in FORMS:
        print(f"compiling: {form} …", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.tpu_estimate", "--form", form]
        for name in ("model", "chip", "batch_size", "dtype"):
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    import jax

    about = {name: getattr(args, name) for name in ("model", "chip", "batch_size", "dtype")}
    note = "estimates of the TPU compiler, not measured"
    print(json.dumps({"note": note, **about, "jax": jax.__version__, "forms": rows}, indent=2))


if __name__ == "__main__":
    main()
