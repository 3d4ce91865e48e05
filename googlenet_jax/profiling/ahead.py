"""The training step compiled ahead of time for a TPU slice that is not there, and what the compiler
says of it.

The compiler is `libtpu`'s (the extra `[tpu]`), which needs no TPU. What it reports of a step is per
chip. Nothing here is measured.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError, check_whole, one_line
from googlenet_jax.runtime.sharding import create_mesh, data_sharding, replicated
from googlenet_jax.training.classification import make_task
from googlenet_jax.training.config import resolve
from googlenet_jax.training.plan import make_plan

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """So many collective operations of one kind in a step; bytes of their results, on one chip."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one training step.

    Attributes:
      chips, hosts: of the slice; batch_size: over all of them.
      memory: bytes on a chip: arguments (the state and the batch), temporaries, output that is not
        an argument's place, and their sum, total.
      operations: floating-point operations of a chip. bytes_accessed: of its memory.
      optimal_seconds: the compiler's own estimate, a lower bound; None where it doesn't know the
        time of some operation.
      collectives: by kind. Inside a loop (devices.accumulate) each counts once.
    """

    topology: str
    chips: int
    hosts: int
    batch_size: int
    memory: dict[str, int]
    operations: float
    bytes_accessed: float
    optimal_seconds: float | None
    collectives: dict[str, Collective]


class _NoData(Source):
    """A data set of which only the sizes are known."""

    def __init__(self, name: str, split: str, classes: int, examples: int) -> None:
        self.name, self.split = name, split
        self.class_names = tuple(map(str, range(classes)))
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def identity(self) -> dict[str, Any]:
        return {}


def compile_step(
    config: ConfigDict, topology: str, *, chips: int | None = None, classes: int, examples: int
) -> Report:
    """Compiles a config's training step for a slice.

    Args:
      config: a classification config, not checked yet. Its data are not opened.
      topology: as libtpu names it: "v5e:16x16", "v6e:4x4", "v5p:4x4x4".
      chips: the first so many of its chips alone; None is all.
      classes, examples: of the data set.
    Raises:
      UserError: a config that is impossible, no libtpu, a topology that it doesn't know or that has
        fewer chips, or a step that a chip's memory can't hold.
    """
    resolved = resolve(config)
    config = resolved.config
    if config.task != "classification":
        raise UserError(f"task: expected 'classification', found {config.task!r}")
    devices = _devices(topology)
    if chips is not None:
        devices = devices[: check_whole("--chips", chips, 1, len(devices))]
    mesh = create_mesh(devices)
    source: Any = _NoData(config.data.name, config.data.train_split, classes, examples)
    plan = make_plan(resolved, make_task(resolved, mesh, source, ()), mesh)
    key = jax.ShapeDtypeStruct((), plan.step_key.dtype, sharding=replicated(mesh))
    try:
        compiled = plan.train_step.lower(plan.shapes, _batch(config, mesh), key).compile()
    except jax.errors.JaxRuntimeError as error:
        text = one_line(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise UserError(
            f"batch_size: {config.batch_size} examples do not fit the memory of {len(devices)}"
            " chips; lower it, raise devices.accumulate, or set devices.rematerialize=True"
            f" ({text[:160]})"
        ) from error
    cost = compiled.cost_analysis()
    optimal = cost.get("optimal_seconds", -1.0)
    return Report(
        topology=topology,
        chips=len(devices),
        hosts=len({device.process_index for device in devices}),
        batch_size=config.batch_size,
        memory=_memory(compiled.memory_analysis()),
        operations=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        optimal_seconds=optimal if optimal > 0 else None,
        collectives=count_collectives(compiled.as_text()),
    )


def _devices(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    # It asks no metadata server which TPU this is, and shares the library with other processes.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # it complains of none
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        text = one_line(error, 200)
        raise UserError(
            f"--topology: can't describe {topology!r}, expected one such as v5e:4x4, v6e:8x8 or"
            f" v5p:2x2x1, and libtpu (pip install 'googlenet-jax[tpu]'): {text}"
        ) from error


def _batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    size, count = config.augment.size or config.preprocessing.size, config.batch_size
    shapes = {
        "image": ((count, size, size, 3), jnp.uint8),
        "label": ((count,), jnp.int32),
        "index": ((count,), jax.dtypes.canonicalize_dtype(np.int64)),
    }
    if config.data.on_bad_image == "skip":
        shapes["weight"] = ((count,), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=data_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }


def _memory(stats: Any) -> dict[str, int]:
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def count_collectives(program: str) -> dict[str, Collective]:
    """Counts the collective operations of a compiled program's text (HLO), by kind, and the bytes
    of their results.

    An asynchronous one is counted where it starts; where that gives operand and result, its result
    is the larger half.
    """
    found: dict[str, list[int]] = {}
    for shape, kind, start in _COLLECTIVE.findall(program):
        sizes = [
            _BYTES[name] * math.prod(map(int, filter(None, lengths.split(","))))
            for name, lengths in _ARRAY.findall(shape)
            if name in _BYTES
        ]
        pairs = start and kind != "all-reduce"
        found.setdefault(kind, []).append(max(sizes) if pairs else sum(sizes))
    return {kind: Collective(len(sizes), sum(sizes)) for kind, sizes in sorted(found.items())}
