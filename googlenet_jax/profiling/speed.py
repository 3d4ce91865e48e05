"""How fast a network runs here: a step's time, the machine's floor below it, and both by layer."""

import dataclasses
import functools
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from googlenet_jax.models.folding import fold_batch_norm
from googlenet_jax.models.network import Network, NormedNetwork
from googlenet_jax.profiling.summary import Summary, summarize

PEAK_SIZE, PEAK_SIZE_ACCELERATOR = 2048, 8192  # of the matrices whose product gives the peak
COPY_BYTES = 256 << 20
CPU_PEAK = "peak_operations_per_cpu_second"
WARM_UP = 2  # steps that touch memory for the first time, not counted


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one process measured.

    Attributes:
      seconds: wall time of each step, those to warm up left out; cpu_seconds: of all threads,
        likewise.
      compile_seconds: tracing and compiling, or reading compiled code from JAX's cache.
      peak_bytes: the largest resident size of the process; on an accelerator, of its own memory.
      device: "cpu", or the accelerator's name.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    compile_seconds: float
    peak_bytes: int
    device: str


def processor_seconds() -> float:
    """CPU seconds of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_steps(step: Callable[[], Any], count: int) -> tuple[list[float], list[float]]:
    """Runs `step`, which returns when it is done, to warm up and then `count` times; returns the
    seconds of each, wall time and CPU time of all threads.
    """
    seconds, cpu_seconds = [], []
    for _ in range(WARM_UP + count):
        start, cpu_start = time.perf_counter(), processor_seconds()
        step()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(processor_seconds() - cpu_start)
    return seconds[WARM_UP:], cpu_seconds[WARM_UP:]


def time_network(model: Network, *, train: bool, batch_size: int, steps: int) -> Timing:
    """Times training steps (SGD with momentum, auxiliary losses weighted 0.3), or inference with
    batch norm folded where there is one.
    """
    step, compile_seconds = compile_step(model, train=train, batch_size=batch_size)
    return time_compiled(step, compile_seconds, steps)


def time_compiled(step: Callable[[], None], compile_seconds: float, steps: int) -> Timing:
    """Times what `compile_step` has made."""
    times, device = time_steps(step, steps), jax.local_devices()[0]
    if device.platform == "cpu":
        return Timing(*times, compile_seconds, resident_bytes(), "cpu")
    peak = device.memory_stats()["peak_bytes_in_use"]
    return Timing(*times, compile_seconds, peak, device.device_kind)


def compile_step(
    model: Network, *, train: bool, batch_size: int
) -> tuple[Callable[[], None], float]:
    """The step that `time_network` times, which returns when it is done; and the seconds that
    tracing and compiling it took.
    """
    images = _images(model, batch_size)
    variables = _initialize(model, images[:1], train=False)
    if not train and isinstance(model, NormedNetwork):
        model, variables = fold_batch_norm(model, variables)
    function, carry = (_training if train else _inference)(model, variables)
    jitted = jax.jit(function, donate_argnums=0 if train else ())
    start = time.perf_counter()
    compiled = jitted.lower(carry, images).compile()
    seconds = time.perf_counter() - start

    def step() -> None:
        nonlocal carry
        result = jax.block_until_ready(compiled(carry, images))
        carry = result if train else carry

    return step, seconds


def _images(model: Network, batch_size: int) -> jax.Array:
    shape = (batch_size, model.input_size, model.input_size, 3)
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def _initialize(module: nn.Module, x: jax.Array, *rest: Any, **settings: Any) -> Any:
    """Random variables; unoptimized, as they are computed once."""
    key = jax.random.key(0)
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    def init(x: jax.Array) -> Any:
        return module.init({"params": key, "dropout": key}, x, *rest, **settings)

    return jax.jit(init, compiler_options=options)(x)


def _training(model: Network, variables: Any) -> tuple[Callable, Any]:
    optimizer = optax.sgd(0.01, 0.9)
    key = jax.random.key(1)

    def loss_fn(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        output: Any
        output, updated = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        labels = jnp.arange(len(images)) % model.num_classes
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        heads = [output.logits, *output.aux_logits.values()]
        losses = [cross_entropy(logits, labels).mean() for logits in heads]
        return losses[0] + 0.3 * sum(losses[1:]), updated.get("batch_stats", {})

    def step(carry: Any, images: jax.Array) -> Any:
        params, stats, opt_state = carry
        (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats, images)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    params = variables["params"]
    return step, (params, variables.get("batch_stats", {}), optimizer.init(params))


def _inference(model: Network, variables: Any) -> tuple[Callable, Any]:
    def apply(variables: Any, images: jax.Array) -> jax.Array:
        output: Any = model.apply(variables, images, train=False)
        return output.logits

    return apply, jax.tree.map(jnp.asarray, variables)


# ------------------------------------------------------------------------------------------- floor


def operations(summary: Summary, *, train: bool, batch_size: int) -> int:
    """Multiplications and additions of a step's products with weights, from the traced network.

    Training takes three times the forward pass, but for the gradient of the images.
    """
    totals = summary.totals(aux=train)["multiply_adds"]
    if train:
        totals = 3 * totals - summary.rows[0].multiply_adds
    return 2 * totals * batch_size


def machine(dtype: Any) -> dict[str, float]:
    """Measures operations a second of a product of 2048² matrices (8192² on an accelerator), also a
    second of CPU time, and bytes a second of a copy (read and written).
    """
    size = PEAK_SIZE if jax.default_backend() == "cpu" else PEAK_SIZE_ACCELERATOR
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)  # ones draw less power
    array = jnp.ones(COPY_BYTES // 4, jnp.float32)
    product, product_cpu = _best_seconds(jax.jit(jnp.matmul), matrix, matrix)
    copy, _ = _best_seconds(jax.jit(jnp.negative), array)
    return {
        "peak_operations_per_second": 2 * size**3 / product,
        CPU_PEAK: 2 * size**3 / product_cpu,
        "copy_bytes_per_second": 2 * COPY_BYTES / copy,
    }


def _best_seconds(function: Callable, *arguments: Any, count: int = 7) -> tuple[float, float]:
    """The least wall time and the least CPU time."""
    seconds, cpu_seconds = time_steps(lambda: _run(function, *arguments), count)
    return min(seconds), min(cpu_seconds)


# ------------------------------------------------------------------------------------------ layers


def time_layers(
    model: Network, *, batch_size: int, rates: Mapping[str, float], steps: int = 3
) -> Iterator[dict[str, Any]]:
    """Times each layer or module of the network by itself, as it stands in training.

    `rates` are `machine`'s. Yields name, then medians in milliseconds, and the floor of its
    products with weights: forward_ms, backward_ms, forward_floor_ms, backward_floor_ms; and with
    `_cpu_ms` for `_ms` the same of all threads' CPU time.
    """
    summary = summarize(model, model.input_size)
    for name, (module, arguments) in _children(model, batch_size).items():
        row = summary.row(name)
        operations = 2 * batch_size * (row.multiply_adds if row else 0)
        of_images = row == summary.rows[0]
        passes = 1 if of_images else 2  # nobody needs the gradient of the images
        result: dict[str, Any] = {"name": name}
        forward, both = _time_layer(module, arguments, steps, of_images=of_images)
        units = (("ms", "peak_operations_per_second"), ("cpu_ms", CPU_PEAK))
        for (unit, rate), *times in zip(units, forward, both, strict=True):
            floor = 1e3 * operations / rates[rate]
            first, whole = (1e3 * statistics.median(seconds) for seconds in times)
            result[f"forward_{unit}"] = first
            result[f"backward_{unit}"] = max(whole - first, 0.0)
            result[f"forward_floor_{unit}"] = floor
            result[f"backward_floor_{unit}"] = passes * floor
        yield result


def _children(model: Network, batch_size: int) -> dict[str, tuple[nn.Module, tuple]]:
    """The network's own layers and modules, with the arguments of their calls (arrays' shapes)."""
    found: dict[str, tuple[nn.Module, tuple]] = {}

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and len(module.path) == 1 and not kwargs:
            shapes = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "shape") else a, args
            )
            found.setdefault(module.path[0], (module.clone(parent=None, name=None), shapes))
        return call(*args, **kwargs)

    images = jax.eval_shape(lambda: _images(model, batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda key, x: model.init({"params": key, "dropout": key}, x, train=True), key, images
        )
    return found


def _time_layer(
    module: nn.Module, arguments: tuple, steps: int, *, of_images: bool
) -> list[tuple[list[float], list[float]]]:
    """`time_steps` of the forward pass, and of forward and backward together."""
    shape, *rest = arguments
    x = jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)
    variables = _initialize(module, x[:1], *rest)
    params = variables.get("params", {})
    stats = {name: tree for name, tree in variables.items() if name == "batch_stats"}
    rngs = {"dropout": jax.random.key(1)}

    def forward(params: Any, x: jax.Array) -> jax.Array:
        applied = {"params": params, **stats}
        y, _ = module.apply(applied, x, *rest, rngs=rngs, mutable=["batch_stats"])
        return y

    def both(params: Any, x: jax.Array) -> Any:
        y, pull = jax.vjp(forward, params, x)
        of_params, of_x = pull(jnp.ones_like(y))
        return of_params if of_images else (of_params, of_x)

    timings = []
    for function in (forward, both):
        compiled = jax.jit(function).lower(params, x).compile()
        step = functools.partial(_run, compiled, params, x)
        timings.append(time_steps(step, steps))
    return timings


def _run(compiled: Callable, *arguments: Any) -> None:
    jax.block_until_ready(compiled(*arguments))
