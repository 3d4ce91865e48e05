"""Compiling ahead of time: what is read out of a program's text, and what is refused."""

import dataclasses
import importlib.util

import jax
import pytest

from googlenet_jax.cli.compile import as_text
from googlenet_jax.errors import UserError
from googlenet_jax.profiling import ahead
from googlenet_jax.profiling.ahead import Collective, Report, compile_step, count_collectives
from googlenet_jax.training.config import default_config

PROGRAM = """
  %all-reduce.1 = f32[64]{0:T(256)} all-reduce(f32[64]{0:T(256)} %x), replica_groups={{0,1}}
  %ar = (f32[2,3]{1,0:T(8,128)}, bf16[10]{0}) all-reduce(%a, %b), to_apply=%add
  %start = f32[5]{0} all-reduce-start(f32[5]{0} %c), to_apply=%add
  %done = f32[5]{0} all-reduce-done(f32[5]{0} %start)
  %gather = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4]{0} %d), dimensions={0}
  %scatter = f32[] reduce-scatter(f32[8]{0} %e), to_apply=%add
  %use = f32[64]{0} add(f32[64]{0} %all-reduce.1, f32[64]{0} %all-reduce.1)
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert count_collectives(PROGRAM) == {
        "all-gather": Collective(1, 64),
        "all-reduce": Collective(3, 64 * 4 + (6 * 4 + 10 * 2) + 5 * 4),
        "reduce-scatter": Collective(1, 4),
    }


def test_the_report_in_words():
    found = {"all-reduce": Collective(120, 3 * 2**20)}
    report = Report("v5e:4x4", 16, 4, 64, {"total": 2**30}, 5e9, 2e9, 0.0015, found)
    assert as_text(report).splitlines() == [
        "v5e:4x4: 16 chips of 4 hosts, batch 64; per chip and step:",
        "  memory, total             1,024.0 MiB",
        "  operations                    5.0 G",
        "  bytes accessed               2.00 GB",
        "  optimal time                 1.50 ms (the compiler's estimate)",
        "  all-reduce                120 times, 3.00 MiB",
    ]
    less = dataclasses.replace(report, collectives={}, optimal_seconds=None)
    assert as_text(less).endswith(" GB\n  no collectives")


def make_config(**model):
    config = default_config()
    config.model.options.update(stem="small", width=0.25, **model)
    config.preprocessing.update(size=32, resize=32)
    config.batch_size = 64
    return config


def test_a_topology_that_is_none_is_named():
    with pytest.raises(UserError, match=r"^--topology: can.t describe .v99:2x2."):
        compile_step(make_config(), "v99:2x2", classes=10, examples=1000)


@pytest.mark.parametrize("chips", [0, 5])
def test_chips_that_the_slice_lacks_are_refused(monkeypatch, chips):
    monkeypatch.setattr(ahead, "_devices", lambda topology: jax.devices()[:1] * 4)
    with pytest.raises(UserError, match=rf"^--chips: .* from 1 to 4, found {chips}$"):
        compile_step(make_config(), "v5e:2x2", chips=chips, classes=10, examples=1000)


@pytest.mark.proof
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]")
def test_batch_norm_over_groups_that_lie_on_one_chip_needs_fewer_collectives():
    whole, groups = (
        compile_step(make_config(bn_groups=groups), "v5e:2x2", classes=10, examples=1000)
        for groups in (1, 4)
    )
    assert (whole.chips, whole.hosts, whole.batch_size) == (4, 1, 64)
    assert whole.operations > 0 and whole.bytes_accessed > 0
    assert whole.memory["total"] > whole.memory["arguments"] > 0
    assert groups.collectives["all-reduce"].bytes < whole.collectives["all-reduce"].bytes
