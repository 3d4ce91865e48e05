"""The loop's order, what stands in a run's folder, and what happens when the same command comes
again.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.training import loop, plan
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.config import default_config
from googlenet_jax.training.folder import check_folder
from googlenet_jax.training.loop import train
from googlenet_jax.training.task import TaskKind, register_task
from googlenet_jax.training.writers import read_metrics
from googlenet_jax.weights.load import load
from tests.training.tiny_run import tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, compiled_dir):
    """A finished run, for reading."""
    workdir = tmp_path_factory.mktemp("finished")
    train(tiny_config(data_dir), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run, to do with as one likes."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def metrics_of(workdir):
    return read_metrics(workdir / "metrics.jsonl")


def without_speed(lines):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in lines
    ]


def bits(variables):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(variables)]


def rewind(workdir, step):
    """What a process killed right after the checkpoint of `step` leaves, with lines that it had
    written after it.
    """
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def test_the_folder_of_a_run(finished, data_dir):
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "curves.png",
        ".lock",
    }
    assert json.loads((finished / "config.json").read_text()) == json.loads(
        json.dumps(tiny_config(data_dir).to_dict())
    )
    steps = [int(path.name) for path in (finished / "checkpoints").iterdir()]
    assert {16, 20, 24} <= set(steps) and len(steps) <= 4


def test_lines_have_the_documented_fields(finished):
    lines = metrics_of(finished)
    common = {"step", "epoch", "split", "loss", "top1", "top5"}
    for line in lines:
        assert line["epoch"] == line["step"] / 4
        if line["split"] == "train":
            assert set(line) == common | {
                "loss_main",
                "loss_aux1",
                "learning_rate",
                "images_per_second",
                "grad_norm",
            }
            assert line["images_per_second"] > 0
        else:
            assert set(line) == common | {"examples", "weights"}
            assert line["examples"] == {"test[:100]": 100, "train[:50]": 50}[line["split"]]
    keys = [(line["step"], line["split"], line.get("weights")) for line in lines]
    evaluations = [
        (step, split, weights)
        for step in range(4, 25, 4)
        for split in ("test[:100]", "train[:50]")
        for weights in ("raw", "ema")
    ]
    assert sorted(keys, key=str) == sorted(
        [*((step, "train", None) for step in range(3, 25, 3)), *evaluations], key=str
    )


def test_it_learns(finished):
    evaluations = [
        line
        for line in metrics_of(finished)
        if line["split"] == "test[:100]" and line["weights"] == "raw"
    ]
    assert evaluations[-1]["top1"] > 0.4 and evaluations[-1]["loss"] < evaluations[0]["loss"]


def test_training_lines_are_means_over_their_interval(finished, copy, data_dir, monkeypatch):
    """Every step logged by itself, the lines of three steps are the means of these."""
    shutil.rmtree(copy)
    config = tiny_config(data_dir)
    config.log_every = "1 step"
    train(config, copy)
    single = {line["step"]: line for line in metrics_of(copy) if line["split"] == "train"}
    for line in metrics_of(finished):
        if line["split"] == "train":
            step = line["step"]
            for name in ("loss", "loss_main", "loss_aux1", "top1", "grad_norm"):
                assert line[name] == pytest.approx(
                    np.mean([single[step - k][name] for k in range(3)])
                )
            assert line["learning_rate"] == single[step]["learning_rate"]


def record_events(workdir, events):
    """Registers a task that is classification, and notes when a batch is asked for and when a split
    is evaluated.

    Beside it stands which checkpoints have been begun by then, and the step of the last training
    line.
    """

    def note(event):
        folder = workdir / "checkpoints"
        saved = sorted(
            {int(path.name.split(".")[0]) for path in folder.iterdir() if path.name[0].isdigit()}
        )
        lines = metrics_of(workdir) if (workdir / "metrics.jsonl").exists() else []
        events.append(
            (
                event,
                saved,
                max((line["step"] for line in lines if line["split"] == "train"), default=0),
            )
        )

    def open_recorded(resolved, mesh):
        task = CLASSIFICATION.open(resolved, mesh)

        def batches(start):
            for number, batch in enumerate(task.batches(start), start):
                note(f"batch {number}")
                yield batch

        def recorded(split, evaluate):
            return lambda *arguments: note(f"evaluate {split}") or evaluate(*arguments)

        evaluations = {
            split: recorded(split, evaluate) for split, evaluate in task.evaluations.items()
        }
        return dataclasses.replace(task, batches=batches, evaluations=evaluations)

    register_task(
        f"recorded {workdir}",
        TaskKind(CLASSIFICATION.defaults, CLASSIFICATION.build, open_recorded),
    )
    return f"recorded {workdir}"


def test_the_order_is_evaluate_save_next_batch_step(tmp_path, data_dir):
    events = []
    config = tiny_config(data_dir)
    config.task = record_events(tmp_path, events)
    config.duration, config.checkpoint_every, config.log_every, config.ema.decay = (
        "5 steps",
        "2 steps",
        "1 step",
        0.0,
    )
    config.data.eval_splits = ("test[:100]",)
    train(config, tmp_path)
    assert [event for event, _, _ in events] == [
        *(
            "batch 0",
            "batch 1",
            "batch 2",
            "batch 3",
            "evaluate test[:100]",
            "batch 4",
            "evaluate test[:100]",
        )
    ]
    # A step that has been evaluated or saved is done: its line stands. A line is written while the
    # next batch is computed on.
    assert [saved for _, saved, _ in events] == [[], [], [2], [2], [2], [2, 4], [2, 4]]
    assert [step for event, _, step in events if event.startswith("evaluate")] == [4, 5]


@pytest.mark.parametrize(
    "step", [16, 20]
)  # 16 lies inside an interval of the training lines, which end at 15 and 18
def test_resuming_is_bit_exact_and_each_line_stands_once(finished, copy, data_dir, step):
    rewind(copy, step)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "spl')
    train(tiny_config(data_dir), copy)
    assert without_speed(metrics_of(copy)) == without_speed(metrics_of(finished))
    for weights in ("raw", "ema"):
        ours, theirs = (load(f"{workdir}@{weights}") for workdir in (copy, finished))
        assert (ours.step, bits(ours.variables)) == (24, bits(theirs.variables))


def test_killed_before_the_first_checkpoint_starts_anew(finished, copy, data_dir):
    rewind(copy, 0)
    train(tiny_config(data_dir), copy)
    assert without_speed(metrics_of(copy)) == without_speed(metrics_of(finished))


def test_evaluation_and_saving_are_not_repeated_on_resuming(copy, data_dir, capsys):
    rewind(copy, 20)
    saved_at = (copy / "checkpoints" / "20").stat().st_mtime_ns
    train(tiny_config(data_dir), copy)
    said = capsys.readouterr().err
    assert (said.count("epoch 5.0, "), said.count("epoch 6.0, ")) == (0, 4)
    assert (copy / "checkpoints" / "20").stat().st_mtime_ns == saved_at


def test_a_finished_run_says_so_and_stays_as_it_is(copy, data_dir, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    train(tiny_config(data_dir), copy)
    assert "this run is finished, all 24 steps are done" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    (copy / "curves.png").unlink()  # killed before the last picture
    train(tiny_config(data_dir), copy)
    assert (copy / "curves.png").exists()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    finished, copy, data_dir, capsys
):
    shutil.rmtree(copy / "checkpoints" / "24" / "state" / "d")
    train(tiny_config(data_dir), copy)
    messages = capsys.readouterr().err
    assert "checkpoints/24 is damaged" in messages and "resuming after step 20" in messages
    assert without_speed(metrics_of(copy)) == without_speed(metrics_of(finished))
    assert bits(load(copy).variables) == bits(load(finished).variables)


def test_a_changed_config_is_refused_with_the_list(copy, data_dir):
    config = tiny_config(data_dir)
    config.seed, config.optimizer.momentum = 1, 0.8
    with pytest.raises(UserError, match=r"optimizer\.momentum: 0\.9 → 0\.8; seed: 0 → 1"):
        train(config, copy)


def test_logging_may_change(finished, copy, data_dir):
    rewind(copy, 20)
    config = tiny_config(data_dir)
    config.log_every, config.eval_every, config.checkpoint.keep = "2 steps", "2 epochs", 1
    train(config, copy)
    assert json.loads((copy / "config.json").read_text())["log_every"] == "2 steps"
    assert bits(load(copy).variables) == bits(load(finished).variables)


def test_an_impossible_config_leaves_no_folder(tmp_path, data_dir):
    config = tiny_config(data_dir)
    config.data.train_split = "nope"
    with pytest.raises(UserError, match="split 'nope'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_without_a_config_are_refused(copy, data_dir):
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
        train(tiny_config(data_dir), copy)


def test_a_broken_config_file_is_named(copy, data_dir):
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: expected a config as JSON"):
        train(tiny_config(data_dir), copy)


def test_a_workdir_that_is_a_file_is_named(tmp_path, data_dir):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run: can't be written: File exists; choose another place"):
        train(tiny_config(data_dir), tmp_path / "run")


def test_metrics_without_the_checkpoints_folder_are_not_started_anew(copy, data_dir):
    lines = (copy / "metrics.jsonl").read_bytes()
    shutil.move(copy / "checkpoints", copy / "elsewhere")
    with pytest.raises(
        UserError,
        match=(
            r"holds metrics\.jsonl of a run, but no 'checkpoints'; put the checkpoints back, or"
            r" remove"
        ),
    ):
        train(tiny_config(data_dir), copy)
    assert (copy / "metrics.jsonl").read_bytes() == lines


def test_a_finished_run_says_so(tmp_path, data_dir, capsys):
    config = tiny_config(data_dir)
    config.duration = "2 steps"
    train(config, tmp_path)
    last = metrics_of(tmp_path)[1]  # the first split's average decides
    assert (
        f"finished all 2 steps; top1 {last['top1']:.4f}, curves in {tmp_path / 'curves.png'}"
        in capsys.readouterr().err
    )


def spoil(monkeypatch, step, **spoilt):
    """Lets the step that leads to `step` go wrong: its metrics (by name) or the parameters that it
    makes ("params").
    """
    make = plan.make_train_step

    def make_spoilt(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def wrapped(state, batch, key):
            number = int(state.step) + 1
            state, metrics = train_step(state, batch, key)
            if number == step and "params" in spoilt:
                state = state.replace(
                    params=jax.tree.map(lambda x: x * spoilt["params"], state.params)
                )
            wrong = {name: jnp.float32(value) for name, value in spoilt.items() if name != "params"}
            return state, metrics | (wrong if number == step else {})

        return wrapped

    monkeypatch.setattr(plan, "make_train_step", make_spoilt)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", np.nan), ("loss", np.inf), ("grad_norm", np.inf), ("loss_aux1", np.nan)],
)
def test_a_metric_that_is_not_finite_stops_the_run(tmp_path, data_dir, monkeypatch, name, value):
    spoil(monkeypatch, 10, **{name: value})
    with pytest.raises(
        UserError,
        match=(
            rf"step 10: the {name} is {value}, at learning rate 0\.06\d+; the last good checkpoint"
            r" is .*checkpoints/8; "
        ),
    ):
        train(tiny_config(data_dir), tmp_path)
    assert load(tmp_path).step == 8
    assert max(line["step"] for line in metrics_of(tmp_path)) == 9


def test_a_loss_that_is_not_finite_is_found_before_saving(tmp_path, data_dir, monkeypatch):
    spoil(monkeypatch, 8, loss=np.nan)
    with pytest.raises(UserError, match=r"step 8: the loss is nan.*checkpoints/4; "):
        train(tiny_config(data_dir), tmp_path)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, data_dir, monkeypatch):
    """The loss of the step that spoils them is still finite."""
    spoil(monkeypatch, 2, params=np.inf)
    config = tiny_config(data_dir)
    config.checkpoint_every = "2 steps"
    with pytest.raises(
        UserError,
        match=(
            r"step 2: the parameters or statistics are not finite, at learning rate [0-9.e-]+;"
            r" there is no good checkpoint yet"
        ),
    ):
        train(config, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_batch_that_the_devices_do_not_divide_is_named(tmp_path, data_dir, monkeypatch):
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    monkeypatch.setattr(loop, "create_mesh", lambda **_: mesh)
    config = tiny_config(data_dir)
    config.batch_size = 15
    with pytest.raises(UserError, match="batch_size: 15 examples do not divide among 2 devices"):
        train(config, tmp_path)


def test_a_run_of_an_older_version_goes_on_and_ends_in_the_same_bits(finished, copy, data_dir):
    """Its config.json lacks the fields that have come since."""
    rewind(copy, 20)
    config = json.loads((copy / "config.json").read_text())
    for path in (
        "task",
        "metrics",
        "loss.name",
        "optimizer.clip_norm",
        "augment.cutmix",
        "checkpoint.best_mode",
    ):
        *groups, field = path.split(".")
        del (config[groups[0]] if groups else config)[field]
    (copy / "config.json").write_text(json.dumps(config))
    train(config, copy)  # a config may be plain dictionaries, and lack the same fields
    assert bits(load(copy).variables) == bits(load(finished).variables)
    assert json.loads((copy / "config.json").read_text())["task"] == "classification"


def test_the_metric_that_decides_which_is_best_is_the_configs(tmp_path, data_dir):
    config = tiny_config(data_dir)
    config.checkpoint.update(keep=1, best="loss", best_mode="min")
    config.metrics = ("top1",)
    train(config, tmp_path)
    lines = [
        line
        for line in metrics_of(tmp_path)
        if (line["split"], line.get("weights")) == ("test[:100]", "ema")
    ]
    assert {"top1"} == set(lines[0]) & {"top1", "top5"}
    best = min(lines, key=lambda line: line["loss"])["step"]
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {best, 24}


def test_the_first_parameters_have_a_seed_of_their_own(tmp_path, data_dir, compiled_dir):
    def first_parameters(seed, init_seed):
        config = tiny_config(data_dir)
        config.update(seed=seed, init_seed=init_seed, duration="1 step")
        config.schedule.learning_rate = 1e-30  # so that the only step changes nothing
        workdir = tmp_path / f"{seed} {init_seed}"
        train(config, workdir)
        params = jax.tree.leaves(load(f"{workdir}@raw").variables["params"])
        return np.concatenate([np.ravel(leaf) for leaf in params])

    alone = first_parameters(3, -1)
    np.testing.assert_allclose(first_parameters(5, 3), alone, rtol=0, atol=1e-20)
    assert not np.allclose(first_parameters(3, 5), alone)


def test_a_device_without_enough_memory_names_the_batch_and_what_to_lower():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros(2**50, jnp.uint8).block_until_ready()
    explained = loop._explained(caught.value, 96, 8)
    assert isinstance(explained, UserError)
    assert str(explained).startswith("batch_size: 96 examples, 12 on each of 8 devices, do not fit")
    assert "devices.accumulate" in str(explained) and "devices.rematerialize" in str(explained)
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert loop._explained(other, 96, 8) is other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": ("conv9*",)}, "freeze: 'conv9\\*' names no part"),
        ({"optimizer.rate_multipliers": ("haed=2",)}, "rate_multipliers: 'haed' names no part"),
        ({"init_from": "no/such/file"}, "init_from: .*no/such/file"),
        ({"init_from": "RUN", "model.options": {"width": 2.0}}, "init_from: .* parameters"),
    ],
)
def test_a_config_that_is_refused_leaves_the_folder_to_the_corrected_one(
    tmp_path, data_dir, finished, fields, message
):
    config = tiny_config(data_dir)
    config.update_from_flattened_dict(
        {name: str(finished) if value == "RUN" else value for name, value in fields.items()}
    )
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    check_folder(tmp_path, tiny_config(data_dir).to_dict(), default_config().to_dict())
