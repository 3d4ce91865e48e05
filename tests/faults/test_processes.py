"""Runs of several real processes: stopped, killed, failed, and gone on with on another layout."""

import signal
import time

import pytest

from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.training.writers import read_metrics
from tests.faults.launch import Run, final_state, free_port, ids_by_step, largest_difference

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def start(tmp_path_factory, data_dir):
    """Starts a run: (name, processes, devices, *fields)."""
    prepare_digits(data_dir)
    folder = tmp_path_factory.mktemp("runs")
    runs = []

    def start(name, *layout_and_fields, **options):
        run = Run(folder / name, data_dir, folder / "cache", *layout_and_fields, **options)
        run.workdir = folder / name
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.end()


@pytest.fixture(scope="module")
def whole(start):
    """A run of one process on one device, which nothing disturbed; a few steps are traced."""
    run = start("whole", 1, 1, "--profile")
    assert run.wait() == [0]
    assert f"traced: {run.workdir}/profile" in run.said(0)
    return run.workdir


def lines(workdir):
    """(step, split) of each line of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    found = read_metrics(path) if path.exists() else []
    return [(line["step"], line["split"]) for line in found]


def wait_until(run, happened, seconds=300):
    """Waits for something to happen, as long as all processes live."""
    end = time.monotonic() + seconds
    while not happened():
        assert all(process.poll() is None for process in run.processes), run.said(0)
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_signal_to_one_process_stops_all_in_an_evaluation_and_another_layout_goes_on(
    start, whole
):
    """The state is saved although none is due, and the evaluation is done by the next start."""
    fields = ["--config.eval_batch_size=12", "--config.checkpoint_every=20 steps"]
    run = start("moved", 2, 2, *fields, "--slow=0.2", "--config.devices.shard_optimizer=True")
    wait_until(run, lambda: (10, "train") in lines(run.workdir))  # five batches are evaluated now
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait() == [0, 0]
    assert "stopped by SIGTERM after step 10 of 20" in run.said(0)
    assert "stopped by" not in run.said(1)  # one speaks
    assert lines(run.workdir)[-1] == (10, "train")
    on_three = start("moved", 1, 3, *fields)
    assert on_three.wait() == [0]
    assert "resuming after step 10" in on_three.said(0)
    assert largest_difference(final_state(run.workdir, 20), final_state(whole, 20)) < 1e-10
    assert lines(run.workdir) == lines(whole)
    assert ids_by_step(run.workdir) == ids_by_step(whole)


def test_a_trace_opens_in_perfetto(whole):
    (trace,) = (whole / "profile").rglob("*.trace.json.gz")
    assert trace.stat().st_size > 1000


def test_a_process_that_fails_ends_the_others_with_its_words(start):
    run = start("fails", 2, 1, own={1: ["--fails"]})
    assert run.wait() == [1, 1]
    assert "process 1 of 2 on" in run.said(0)
    assert "has failed: this batch can't be read" in run.said(0)
    assert "googlenet-jax: this batch can't be read" in run.said(1)
    assert "Traceback" not in run.said(0) + run.said(1)


def test_a_killed_process_is_named(start):
    run = start("killed", 2, 1, "--slow=0.1", "--silence=6")
    wait_until(run, (run.workdir / "checkpoints/5").exists)
    run.processes[1].kill()
    assert run.processes[0].wait(300) == 1
    assert "process 1 of 2 on" in run.said(0)
    assert "has died or hangs: no sign of life for" in run.said(0)
    assert (run.workdir / "checkpoints" / "5").is_dir()


def test_one_that_stands_still_is_named_and_the_death_of_process_0_ends_it(start):
    own = {1: ["--peer-timeout=6"], 2: ["--stands-still"]}
    run = start("still", 3, 1, own=own)
    assert run.processes[1].wait(300) == 1
    assert "process 2 of 3 on" in run.said(1)
    assert "hangs: it stands still since" in run.said(1)
    run.processes[0].kill()
    assert run.processes[2].wait(60) != 0  # JAX ends it, in its own words


def test_a_process_that_never_comes_is_an_error(start):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    alone = [address, "--num-processes=2", "--process-id=0", "--peer-timeout=3"]
    run = start("alone", 1, 1, own={0: alone})
    assert run.wait(60) == [1]
    assert "have found each other at 127.0.0.1" in run.said(0)
    assert "Traceback" not in run.said(0)
