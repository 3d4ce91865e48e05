"""What is written comes back bit for bit, what is damaged is found, and what does not belong is
refused by name.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import create_model, model_options
from googlenet_jax.weights.checkpoints import Checkpoints, RunDescription, read_run

DESCRIPTION = RunDescription(
    model_name="googlenet",
    model_options={"width": 0.5, "aux_heads": True},
    config={"seed": 0},
    class_names=("zero", "one"),
    preprocessing={"size": 32, "mean": (1.0, 2.0, 3.0)},
)


def make_state(seed: int = 0):
    """Random bits (NaNs and denormals among them) in every dtype a state may hold."""
    rng = np.random.default_rng(seed)

    def bits(shape, dtype):
        width = np.dtype(dtype).itemsize
        return jnp.asarray(
            rng.integers(0, 256, (*shape, width), dtype=np.uint8).view(np.dtype(dtype))[..., 0]
        )

    return {
        "step": jnp.int32(seed),
        "params": {
            "conv1": {"kernel": bits((3, 3, 2, 4), np.float32), "bias": bits((4,), jnp.bfloat16)}
        },
        "batch_stats": {"conv1": {"mean": bits((4,), np.float16)}},
        "opt_state": (bits((5,), np.uint32), (), jnp.array([True, False])),
        "ema": None,
    }


def bits_of(state):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(state)]


def write(workdir, steps, keep=3, description=DESCRIPTION, top1=None):
    checkpoints = Checkpoints(workdir, description, keep)
    for step in steps:
        checkpoints.save(
            step, make_state(step), metric=(top1 or {}).get(step), interval={"steps": step}
        )
    checkpoints.close()


def restore(workdir, state=None, description=DESCRIPTION):
    checkpoints = Checkpoints(workdir, description, keep=3)
    try:
        return checkpoints.restore_latest(make_state(99) if state is None else state)
    finally:
        checkpoints.close()


def test_round_trip_is_bit_exact(tmp_path):
    write(tmp_path, [7])
    restored = restore(tmp_path)
    assert (restored.step, restored.interval) == (7, {"steps": 7})
    assert bits_of(restored.state) == bits_of(make_state(7))
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state(7))


def test_float64_round_trip(tmp_path):
    with jax.enable_x64(True):
        state = {"params": {"kernel": jnp.asarray([1 / 3, np.pi])}}
        assert state["params"]["kernel"].dtype == jnp.float64
        checkpoints = Checkpoints(tmp_path, DESCRIPTION, 1)
        checkpoints.save(1, state, metric=None, interval={})
        checkpoints.close()
        assert bits_of(restore(tmp_path, state).state) == bits_of(state)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_restored_arrays_have_the_shardings_asked_for(tmp_path):
    write(tmp_path, [1])
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(1)
    )
    assert all(x.sharding == sharding for x in jax.tree.leaves(restore(tmp_path, abstract).state))


def test_save_is_not_disturbed_by_donating_the_state(tmp_path):
    """The step donates its state while the save is still writing in the background."""
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    values = np.arange(1_000_000, dtype=np.float32)
    checkpoints = Checkpoints(tmp_path, DESCRIPTION, 1)
    state = change({"params": {"kernel": jnp.zeros_like(values)}})
    state = jax.tree.map(lambda x: x + 1 + values, state)
    checkpoints.save(1, state, metric=None, interval={})
    for _ in range(5):
        state = change(state)
    checkpoints.close()
    np.testing.assert_array_equal(restore(tmp_path, state).state["params"]["kernel"], values)


def test_the_last_and_the_best_are_kept_over_restarts(tmp_path):
    write(tmp_path, [1, 2, 3], keep=2, top1={1: 0.9, 2: 0.5})
    write(tmp_path, [4, 5, 6], keep=2, top1={5: 0.8})
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [1, 5, 6]


def test_load_run_takes_any_step_raw_or_ema(tmp_path):
    checkpoints = Checkpoints(tmp_path, DESCRIPTION, keep=3)
    for step in (1, 2):
        variables = {
            "params": {"head": {"kernel": jnp.full((2,), step)}},
            "batch_stats": {"bn": {"mean": jnp.full((1,), step)}},
        }
        state = {
            **variables,
            "ema": jax.tree.map(lambda x: x + 10, variables),
            "opt_state": jnp.zeros(3),
        }
        checkpoints.save(step, state, metric={1: 0.9, 2: 0.1}[step], interval={})
    checkpoints.close()
    run = read_run(tmp_path)
    assert (run.step, run.weights) == (2, "ema")
    assert run.config == DESCRIPTION.to_json()["config"]
    assert run.class_names == DESCRIPTION.class_names
    assert jax.tree.map(lambda x: x.tolist(), run.variables) == {
        "params": {"head": {"kernel": [12, 12]}},
        "batch_stats": {"bn": {"mean": [12]}},
    }
    first = read_run(tmp_path, weights="raw", step=1)
    assert (first.step, first.variables["params"]["head"]["kernel"].tolist()) == (1, [1, 1])
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 1, 2"):
        read_run(tmp_path, step=3)


def test_load_run_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no folder 'checkpoints'"):
        read_run(tmp_path)
    write(tmp_path, [1])
    with pytest.raises(UserError, match="no average"):
        read_run(tmp_path, weights="ema")


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_every_kind_of_damage_gives_the_exact_state_or_the_one_before(tmp_path, capsys):
    """Each file of the newest checkpoint in turn is truncated, emptied, deleted, or has a byte
    flipped: a wrong state never comes back.
    """
    write(tmp_path / "whole", [1, 2])
    fell_back = set()
    names = [
        p.relative_to(tmp_path / "whole")
        for p in files_of(tmp_path / "whole" / "checkpoints" / "2")
    ]
    for name in names:
        for damage in ("truncate", "delete", "flip"):
            shutil.copytree(tmp_path / "whole", tmp_path / "run")
            path = tmp_path / "run" / name
            content = path.read_bytes()
            if damage == "delete":
                path.unlink()
            elif damage == "truncate":
                path.write_bytes(content[: len(content) // 2])
            else:
                middle = len(content) // 2
                path.write_bytes(
                    content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
                )
            restored = restore(tmp_path / "run")
            message = capsys.readouterr().err
            assert bits_of(restored.state) == bits_of(make_state(restored.step)), (name, damage)
            if restored.step == 1:
                fell_back.add((str(name), damage))
                assert "checkpoints/2 is damaged" in message, (name, damage)
                assert (tmp_path / "run" / "checkpoints" / "damaged-2").is_dir()
            shutil.rmtree(tmp_path / "run")
    assert {
        ("checkpoints/2/metadata/metadata", damage) for damage in ("truncate", "delete", "flip")
    } <= fell_back
    assert {
        ("checkpoints/2/state/manifest.ocdbt", damage) for damage in ("truncate", "delete", "flip")
    } <= fell_back


def test_flipped_byte_in_an_array_is_found_and_named(tmp_path, capsys):
    """Where the file format does not notice it itself, the array's checksum does."""
    values = np.random.default_rng(0).integers(0, 2**31, 100_000, dtype=np.int32)
    checkpoints = Checkpoints(tmp_path, DESCRIPTION, keep=3)
    for step in (1, 2):
        checkpoints.save(
            step, {"params": {"kernel": jnp.asarray(values + step)}}, metric=None, interval={}
        )
    checkpoints.close()
    largest = max(files_of(tmp_path / "checkpoints" / "2"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    restored = restore(tmp_path, {"params": {"kernel": jnp.asarray(values)}})
    np.testing.assert_array_equal(restored.state["params"]["kernel"], values + 1)
    assert (
        "checkpoints/2 is damaged (params/kernel does not have the checksum"
        in capsys.readouterr().err
    )


def test_all_damaged_is_an_error_and_nothing_is_overwritten(tmp_path):
    write(tmp_path, [1, 2])
    for step in "12":
        shutil.rmtree(tmp_path / "checkpoints" / step / "state")
    for _ in range(2):  # the second start, too
        with pytest.raises(UserError, match="each of its 2 checkpoints is damaged"):
            restore(tmp_path)


@pytest.mark.parametrize("content", ["", '{"top', "{}", "[]"])
def test_damaged_metrics_stop_neither_resuming_nor_reading(tmp_path, capsys, content):
    write(tmp_path, [1, 2], top1={1: 0.5, 2: 0.6})
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text(content)
    with pytest.raises(
        UserError, match=r"checkpoints/2: the checkpoint is damaged .its metrics can't be read"
    ):
        read_run(tmp_path, weights="raw")
    assert restore(tmp_path).step == 1
    assert "checkpoints/2 is damaged (its metrics can't be read" in capsys.readouterr().err


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    write(tmp_path, [1, 2])

    def refuse(*args, **kwargs):
        raise ValueError("PERMISSION_DENIED: opening checkpoints/2/state")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", refuse)
    with pytest.raises(
        UserError,
        match=r"can't be read: .*PERMISSION_DENIED.*; free memory or mend the permissions",
    ):
        restore(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_a_damaged_step_can_be_saved_again(tmp_path, capsys):
    write(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    checkpoints = Checkpoints(tmp_path, DESCRIPTION, keep=3)
    assert checkpoints.restore_latest(make_state()).step == 1
    checkpoints.save(2, make_state(2), metric=None, interval={})
    checkpoints.close()
    assert bits_of(restore(tmp_path).state) == bits_of(make_state(2))


def test_a_folder_left_by_a_killed_save_is_named_and_not_used(tmp_path, capsys):
    write(tmp_path, [1])
    shutil.copytree(
        tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    )
    assert restore(tmp_path).step == 1
    assert (
        "2.orbax-checkpoint-tmp is a checkpoint that was never finished" in capsys.readouterr().err
    )
    write(tmp_path, [2])
    assert restore(tmp_path).step == 2


def without_arrays(workdir):
    """Takes the arrays away: what is refused before any is read is not called damaged."""
    shutil.rmtree(workdir / "checkpoints" / "1" / "state" / "d")


def test_another_model_or_other_options_are_refused_before_reading(tmp_path):
    write(tmp_path, [1])
    without_arrays(tmp_path)
    with pytest.raises(UserError, match="is of model googlenet, not googlenet_bn"):
        restore(tmp_path, description=dataclasses.replace(DESCRIPTION, model_name="googlenet_bn"))
    options = {"width": 1.0, "aux_heads": True}
    with pytest.raises(UserError, match=r"width=0\.5 \(now 1\.0\)"):
        restore(tmp_path, description=dataclasses.replace(DESCRIPTION, model_options=options))


def test_missing_misshapen_and_left_over_parameters_are_named(tmp_path):
    write(tmp_path, [1])
    without_arrays(tmp_path)
    state = make_state()
    state["params"]["conv1"]["kernel"] = jnp.zeros((3, 3, 2, 5))
    with pytest.raises(
        UserError,
        match=r"params/conv1/kernel is float32 \[3, 3, 2, 4\], expected float32 \[3, 3, 2, 5\]",
    ):
        restore(tmp_path, state)
    state = make_state()
    state["params"]["conv2"] = {"kernel": jnp.zeros(1)}
    with pytest.raises(UserError, match="params/conv2/kernel is missing"):
        restore(tmp_path, state)
    state = make_state()
    del state["batch_stats"]
    with pytest.raises(UserError, match="batch_stats/conv1/mean is in the checkpoint, but not"):
        restore(tmp_path, state)


def test_an_option_that_an_older_checkpoint_lacks_has_its_default(tmp_path):
    write(tmp_path, [1])
    whole = {**model_options(create_model("googlenet")), **DESCRIPTION.model_options}
    assert (
        restore(tmp_path, description=dataclasses.replace(DESCRIPTION, model_options=whole)).step
        == 1
    )
    other = {**whole, "dropout": 0.1}
    with pytest.raises(UserError, match=r"dropout=0\.4 \(now 0\.1\)"):
        restore(tmp_path, description=dataclasses.replace(DESCRIPTION, model_options=other))


def test_the_best_may_be_the_lowest(tmp_path):
    checkpoints = Checkpoints(tmp_path, DESCRIPTION, 1, best="loss", best_mode="min")
    for step, loss in enumerate((0.5, 0.2, 0.9, 0.7), start=1):
        checkpoints.save(step, make_state(step), metric=loss, interval={})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
