"""Signals, two runs in one folder, and a disk that refuses."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from googlenet_jax.cli.streams import Unbreakable
from googlenet_jax.errors import UserError
from googlenet_jax.runtime.storage import locked
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.loop import train
from googlenet_jax.training.task import TaskKind, register_task
from googlenet_jax.training.writers import read_metrics
from googlenet_jax.weights.load import load
from tests.training.tiny_run import tiny_config

ROOT = Path(__file__).parents[2]


def lines_of(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in lines
    ]


def final_bits(workdir):
    return [np.asarray(leaf).tobytes() for leaf in _leaves(load(f"{workdir}@raw").variables)]


def _leaves(tree):
    return [
        leaf
        for value in tree.values()
        for leaf in (_leaves(value) if isinstance(value, dict) else [value])
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir, compiled_dir):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    train(tiny_config(data_dir), workdir)
    return workdir


def disturbed(data_dir, name, *, before_batch=None, before_evaluation=None, signum):
    """A config whose task sends this process a signal: before batch k, or before evaluation k. It
    is told once.
    """
    sent = []

    def send(moment, number):
        if number == moment and not sent:
            sent.append(number)
            signal.raise_signal(signum)

    def open_disturbed(resolved, mesh):
        task = CLASSIFICATION.open(resolved, mesh)
        evaluated = []

        def batches(start):
            for number, batch in enumerate(task.batches(start), start):
                send(before_batch, number)
                yield batch

        def disturb(evaluate):
            def evaluation(variables, should_stop):
                send(before_evaluation, len(evaluated))
                evaluated.append(0)
                return evaluate(variables, should_stop)

            return evaluation

        evaluations = {split: disturb(evaluate) for split, evaluate in task.evaluations.items()}
        return dataclasses.replace(task, batches=batches, evaluations=evaluations)

    register_task(name, TaskKind(CLASSIFICATION.defaults, CLASSIFICATION.build, open_disturbed))
    config = tiny_config(data_dir)
    config.task = name
    return config


# Each step has 4 evaluations: two splits, raw and averaged. Evaluations begin after step 4.
MOMENTS = {
    "between a save and the next": ({"before_batch": 9}, 10),
    "the step before an evaluation": ({"before_batch": 11}, 12),
    "inside an evaluation": ({"before_evaluation": 6}, 8),
    "the last evaluation": ({"before_evaluation": 23}, 24),
}


@pytest.mark.parametrize(
    ("signum", "ending", "moment"),
    [
        *((signal.SIGINT, KeyboardInterrupt, moment) for moment in MOMENTS),
        *((signal.SIGTERM, SystemExit, moment) for moment in MOMENTS),
        (signal.SIGHUP, SystemExit, "inside an evaluation"),
    ],
)
def test_a_signal_stops_the_run_saved_and_it_goes_on_exactly(
    tmp_path, data_dir, whole, capsys, moment, signum, ending
):
    when, step = MOMENTS[moment]
    config = disturbed(data_dir, f"{tmp_path}", signum=signum, **when)
    handler = signal.getsignal(signum)
    with pytest.raises(ending) as stopped:
        train(config, tmp_path)
    assert getattr(stopped.value, "code", 0) == 0
    assert signal.getsignal(signum) == handler
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    assert (
        f"stopped by {name} after step {step} of 24, which is saved; the same command resumes it"
        in capsys.readouterr().err
    )
    assert load(tmp_path).step == step
    train(config, tmp_path)
    assert lines_of(tmp_path) == lines_of(whole)
    assert final_bits(tmp_path) == final_bits(whole)
    # The evaluation that was made up for counts for the best checkpoint.
    metrics = {
        path.parent.parent.name: path.read_text()
        for path in (tmp_path / "checkpoints").glob("*/metrics/metrics")
    }
    theirs = {
        path.parent.parent.name: path.read_text()
        for path in (whole / "checkpoints").glob("*/metrics/metrics")
    }
    assert {step: metrics.get(step) for step in theirs if int(step) >= 16} == {
        s: v for s, v in theirs.items() if int(s) >= 16
    }
    assert not list((tmp_path / "checkpoints").glob("unevaluated-*"))


def test_a_replacement_that_was_cut_short_is_settled(tmp_path, data_dir, whole):
    """Killed while the checkpoint of a made-up evaluation was being replaced: before the new one
    stood, and after.
    """
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "24").rename(folder / "unevaluated-24")
    train(tiny_config(data_dir), tmp_path / "run")
    assert load(tmp_path / "run").step == 24
    shutil.copytree(folder / "24", folder / "unevaluated-24")
    train(tiny_config(data_dir), tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (whole / "checkpoints").iterdir()
    )


def run_script(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


IN_NO_STATE = """
import signal, sys
from googlenet_jax.runtime.preemption import catching_signals
with catching_signals():
    signal.raise_signal(int(sys.argv[1]))
"""
HOLD = """
import sys
from pathlib import Path
from googlenet_jax.runtime.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
TRAIN_WITH_SMALL_FILES = """
import resource, signal, sys
from pathlib import Path
from googlenet_jax.errors import UserError
from googlenet_jax.training.loop import train
from googlenet_jax.runtime.process import prepare
from tests.training.tiny_run import tiny_config

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = tiny_config(Path(sys.argv[1]))
prepare()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    train(config, sys.argv[2])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("signum", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 0, "SIGTERM"), (signal.SIGHUP, 0, "SIGHUP")],
)
def test_before_there_is_a_state_a_signal_ends_the_process_in_one_line(signum, status, name):
    done = run_script(IN_NO_STATE, int(signum))
    assert (done.returncode, done.stderr.strip()) == (
        status,
        f"googlenet-jax: stopped by {name} before anything was trained",
    )


def test_a_signal_that_is_ignored_stays_ignored():
    """As `nohup` starts a command, which goes on when the terminal is closed."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + IN_NO_STATE
    done = run_script(code, int(signal.SIGHUP))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_signal_ends_the_process_at_once():
    code = """
import signal
from googlenet_jax.runtime.preemption import catching_signals
with catching_signals() as stop:
    stop.has_state = True
    signal.raise_signal(signal.SIGTERM)
    assert stop.signum == signal.SIGTERM
    signal.raise_signal(signal.SIGINT)
    print("still there")
"""
    done = run_script(code)
    assert (done.returncode, done.stdout) == (130, "")
    assert (
        "stopped at once by a second signal, Ctrl-C; the last good checkpoint stands" in done.stderr
    )


@contextlib.contextmanager
def holder(workdir):
    """Another process that holds the folder's lock."""
    command = [sys.executable, "-c", HOLD, str(workdir)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_in_the_folder_refuses_and_a_killed_ones_lock_does_not_block(
    tmp_path, data_dir, whole
):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    before = {
        path: path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    (workdir / "checkpoints" / "99.orbax-checkpoint-tmp").mkdir()
    with holder(workdir) as process:
        with pytest.raises(
            UserError,
            match=(
                rf"process {process.pid} on .* is training in this folder; wait for it or stop it"
            ),
        ):
            train(tiny_config(data_dir), workdir)
        assert (
            workdir / "checkpoints" / "99.orbax-checkpoint-tmp"
        ).exists()  # the other's unfinished save
        assert load(workdir).step == 24  # readers need no lock
        assert {path: path.read_bytes() for path in before} == before
        process.kill()
        process.wait()
    with locked(workdir):
        pass


@pytest.mark.parametrize(
    "largest", [6_000, 1_000]
)  # bytes: config.json is written with the first, not with the second
def test_a_disk_that_refuses_is_one_line(tmp_path, data_dir, largest):
    """By a limit on the size of files: the error's way through Orbax is that of a full disk."""
    done = run_script(TRAIN_WITH_SMALL_FILES, data_dir, tmp_path / "run", largest)
    assert (
        "can't be written: File too large; raise the limit on the size of files" in done.stdout
    ), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr, done.stderr


def test_a_reader_of_standard_error_that_goes_away_does_not_end_training(tmp_path, data_dir, whole):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        with pytest.raises(BrokenPipeError):
            print("nobody hears", file=stream)
        with contextlib.redirect_stderr(Unbreakable(stream)):
            train(tiny_config(data_dir), tmp_path)
    assert final_bits(tmp_path) == final_bits(whole)


def test_what_a_disk_refuses_is_found_inside_other_errors():
    from googlenet_jax.runtime.local_storage import disk_reason

    assert disk_reason(
        ValueError("INTERNAL: writing foo: No space left on device [os_error=28]")
    ).startswith("No space left on device; free")
    try:
        try:
            raise OSError(28, os.strerror(28))
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert disk_reason(error).startswith("No space left on device")
    assert disk_reason(ValueError("a bug")) is None
