"""What a process makes of what the others say of themselves; real ones are in tests/faults/."""

import jax
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.distributed import SILENCE, Peers, connect


@pytest.fixture
def peers(monkeypatch):
    """Process 0 of three, at 12 questions asked."""
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    peers = Peers(timeout=100)
    for _ in range(12):
        peers.tick()
    return peers


def says(beat, tick=12, failed=""):
    return {"host": "there", "beat": beat, "tick": tick, "failed": failed}


def test_processes_that_go_on_are_left_alone(peers):
    for beat in range(200):
        now = 10.0 * beat
        peers.tick()
        states = {1: says(beat, tick=13 + beat), 2: says(beat, tick=11 + beat)}
        assert peers._problem(states, now) == ""


def test_one_that_is_silent_is_named(peers):
    assert peers._problem({1: says(5), 2: says(5)}, 0.0) == ""
    assert peers._problem({1: says(6), 2: says(5)}, SILENCE - 1.0) == ""
    problem = peers._problem({1: says(7), 2: says(5)}, SILENCE + 1.0)
    assert problem == "process 2 of 3 on there has died or hangs: no sign of life for 31 s"


def test_one_that_stands_still_while_others_wait_is_named(peers):
    """It lives, and so do those that wait for it: all are silent about steps, one is behind."""
    found = [
        peers._problem({1: says(beat), 2: says(beat, tick=11)}, 10.0 * beat) for beat in range(12)
    ]
    assert found[:11] == [""] * 11
    assert found[11] == (
        "process 2 of 3 on there hangs: it stands still since 110 s, and the others wait for it"
    )


def test_one_that_has_failed_or_finished(peers):
    assert peers._problem({1: says(1), 2: says(1, failed="no such file")}, 0.0) == (
        "process 2 of 3 on there has failed: no such file"
    )
    finished = {1: says(1, tick=-1), 2: says(1, tick=-1)}
    assert [peers._problem(finished, now) for now in (0.0, 1000.0)] == ["", ""]


def test_alone_it_trains_although_a_device_was_used_before(monkeypatch):
    jax.devices()
    connect()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^--import: a module has used a device before"):
        connect()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("here:1", None, 0), "--num-processes: missing; --coordinator, --num-processes and"),
        (("here", 2, 0), "--coordinator: expected HOST:PORT, found 'here'"),
        (("here:70000", 2, 0), "--coordinator: expected HOST:PORT, found 'here:70000'"),
        (("here:1", 0, 0), "--num-processes: expected at least 1, found 0"),
        (("here:1", 2, 2), "--process-id: expected a whole number from 0 to 1, found 2"),
    ],
)
def test_arguments_that_cannot_be(arguments, line):
    with pytest.raises(UserError) as caught:
        connect(*arguments)
    assert str(caught.value).startswith(line)
