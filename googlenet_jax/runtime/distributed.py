"""This process among several: how they find each other, agree, and notice that one has gone.

JAX's own coordination service tells neither who is missing nor who hangs in Python; what is said
here goes through the same service's key-value store, which every process reaches as long as the
first one lives. Where that one dies, JAX itself ends the others, in its own words: docs/pods.md.
The module is the only one that touches them.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.runtime.preemption import Stop
from googlenet_jax.runtime.process import is_first
from googlenet_jax.runtime.sharding import data_sharding, replicated

PEER_TIMEOUT = 300  # seconds
SILENCE: float = 30  # seconds without a sign of life after which a process counts as dead
_BEAT = 2  # seconds between signs of life
_KEYS = "googlenet_jax/processes/"
_apart = threading.Event()  # set before and after the others are watched: then they may be gone
_apart.set()


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = PEER_TIMEOUT,
) -> None:
    """Joins this process to the others, by JAX's `jax.distributed`; call it before JAX touches a
    device.

    Without arguments the environment decides, as JAX detects it: TPU pods, SLURM, Open MPI,
    JAX_COORDINATOR_ADDRESS. Where it says nothing, the process trains alone.

    Args:
      coordinator: HOST:PORT of process 0, which every process can reach.
      num_processes, process_id: how many there are, and which this is, from 0.
      timeout: seconds to wait for the others.
    Raises:
      UserError: arguments that can't be. A process that has not come in time ends this one with
        status 1 and a line that says so.
    """
    _check_given(coordinator, num_processes, process_id)
    where = coordinator or "the address that the environment gives"
    # JAX's own end of waiting is an abort with a stack trace, so that ours comes before it.
    text = (
        f"--coordinator: after {timeout} s not all {num_processes or ''} processes have found each"
        f" other at {where}; start all of them, each with its --process-id, and see that they reach"
        " that address"
    )
    waiting = threading.Timer(timeout, _end_at_once, [text])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=timeout + 60,
        )
    except ValueError as error:
        if coordinator is None and "coordinator_address" in str(error):
            return  # no cluster: this process trains alone
        raise UserError(f"jax.distributed: {_first_line(error)}") from error
    except Exception as error:
        if "must be called before" not in str(error):
            raise UserError(
                f"--coordinator: can't join at {where}: {_first_line(error)}"
            ) from error
        if coordinator is None and not _environment_names_others():
            return
        raise UserError(
            "--import: a module has used a device before the processes found each other; let it do "
            "so in functions alone"
        ) from error
    finally:
        waiting.cancel()


def _environment_names_others() -> bool:
    """Whether JAX would find other processes, where it can no longer be asked to join them."""
    from jax._src.clusters import ClusterEnv  # no public name answers this

    return "JAX_COORDINATOR_ADDRESS" in os.environ or any(
        kind.is_env_present() for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method
    )


def _end_run(problem: str) -> None:
    """Ends this process where another has ended the run, unless it is past that."""
    if _apart.is_set():
        return
    text = f"{problem}; the last good checkpoint stands, start all processes again"
    # The others find the same within a beat, as long as process 0 lives.
    _end_at_once(text, after=2 * _BEAT if is_first() else 0)


def _end_at_once(text: str, after: float = 0) -> None:
    """Says why, and ends with status 1; nothing waits for other processes then."""
    os.write(2, f"\ngooglenet-jax: {text}\n".encode())
    time.sleep(after)
    os._exit(1)


def _check_given(coordinator: str | None, num_processes: Any, process_id: Any) -> None:
    """Refuses some of the three without the others, and values that can't be."""
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(
            f"{', '.join(missing)}: missing; --coordinator, --num-processes and --process-id go"
            " together"
        )
    if coordinator is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator: expected HOST:PORT, found {coordinator!r}")
    if num_processes < 1:
        raise UserError(f"--num-processes: expected at least 1, found {num_processes}")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id: expected a whole number from 0 to {num_processes - 1}, found"
            f" {process_id}"
        )


class Agreement:
    """Whether all processes stop now: `agreement()` answers the same in each, as long as each asks
    equally often.

    A signal to any of them counts. The question is a maximum over the devices, asked at one call
    and answered at the next, so that nobody waits for it; alone, a process answers at once.
    """

    def __init__(self, stop: Stop, mesh: Mesh, tick: Callable[[], None]) -> None:
        """`stop` is this process's; `tick` is called at each question."""
        self._stop, self._tick = stop, tick
        self._sharding = data_sharding(mesh)
        self._local_devices = len(mesh.local_devices)
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._asked: jax.Array | None = None
        self.signum: int | None = None  # of the signal that was agreed upon

    def __call__(self) -> bool:
        """Whether all stop after what is under way."""
        if self.signum is None:
            self._tick()
            self.signum = self._stop.signum if jax.process_count() == 1 else self._ask()
        return self.signum is not None

    def _ask(self) -> int | None:
        answer = None if self._asked is None else int(self._asked) or None
        ours = np.full(self._local_devices, self._stop.signum or 0, np.int32)
        self._asked = self._largest(jax.make_array_from_process_local_data(self._sharding, ours))
        return answer


class Peers:
    """The other processes: each says every few seconds that it lives and how far it is, and what
    has ended it.

    A process that is silent for SILENCE seconds, or stands still for `timeout` seconds while
    others continue, is named on standard error, and this process ends with status 1: no collective
    operation would ever return.
    """

    def __init__(self, timeout: float) -> None:
        from jax._src import distributed  # no public name reaches the key-value store

        self._client: Any = distributed.global_state.client
        self._timeout = timeout
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {
            "host": socket.gethostname(),
            "beat": 0,
            "tick": 0,
            "failed": "",
        }
        self._seen: dict[int, tuple[int, float]] = {}  # process -> its last beat, and when
        self._moved = (0, time.monotonic())  # our last tick, and when
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    def start(self) -> None:
        """Begins to tell and to watch."""
        _apart.clear()
        self._thread.start()

    def tick(self) -> None:
        """Notes that this process goes on."""
        self._state["tick"] += 1

    def failed(self, error: BaseException) -> None:
        """Tells the others why this process ends; at the second call it does nothing.

        What JAX raises is most often another process's end: then that one is given time to be
        found, which ends this process too.
        """
        if _apart.is_set():
            return
        if not isinstance(error, UserError):
            _apart.wait(SILENCE + 3 * _BEAT)
        self._state["failed"] = _first_line(error)
        with contextlib.suppress(Exception):
            self._tell()
        _apart.set()
        if is_first():
            time.sleep(2 * _BEAT)  # what it has told ends with it

    def stop(self) -> None:
        """Ends watching: from here on the others may be gone."""
        if not _apart.is_set():
            self._state["tick"] = -1  # finished
            with contextlib.suppress(Exception):
                self._tell()
            _apart.set()
        self._thread.join()

    def _tell(self) -> None:
        with self._lock:
            self._state["beat"] += 1
            self._client.key_value_set(
                f"{_KEYS}{jax.process_index()}", json.dumps(self._state), allow_overwrite=True
            )

    def _watch(self) -> None:
        while not _apart.wait(_BEAT):
            try:
                self._tell()
                found = self._client.key_value_dir_get(_KEYS)
            except Exception:
                _end_run("process 0, which the others speak through, can't be reached any more")
                return
            states = {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in found}
            if problem := self._problem(states, time.monotonic()):
                _end_run(problem)
                return

    def _problem(self, states: dict[int, dict[str, Any]], now: float) -> str:
        """What is wrong with one of the others, or ""."""
        ours = jax.process_index()
        if self._state["tick"] != self._moved[0]:
            self._moved = self._state["tick"], now
        for number, state in sorted(states.items()):
            if number == ours or state["tick"] == -1:
                continue
            name = f"process {number} of {jax.process_count()} on {state['host']}"
            if state["failed"]:
                return f"{name} has failed: {state['failed']}"
            beat, when = self._seen.get(number, (-1, now))
            if beat != state["beat"]:
                self._seen[number] = state["beat"], now
            elif now - when > SILENCE:
                return f"{name} has died or hangs: no sign of life for {now - when:.0f} s"
            if now - self._moved[1] > self._timeout and state["tick"] < self._state["tick"]:
                return (
                    f"{name} hangs: it stands still since {now - self._moved[1]:.0f} s, and the"
                    " others wait for it"
                )
        return ""


@contextlib.contextmanager
def watching(timeout: float) -> Iterator[Peers | None]:
    """Watches over the other processes inside; None, and nothing done, where this one is alone.

    What is raised inside is told to them. It must be raised without waiting for them: see
    `telling`.
    """
    if jax.process_count() == 1:
        yield None
        return
    peers = Peers(timeout)
    peers.start()
    try:
        yield peers
    except Exception as error:
        peers.failed(error)
        raise
    finally:
        peers.stop()


@contextlib.contextmanager
def telling(peers: Peers | None) -> Iterator[None]:
    """Tells the others at once what is raised inside."""
    try:
        yield
    except Exception as error:
        if peers is not None:
            peers.failed(error)
        raise


def _first_line(error: BaseException) -> str:
    text = one_line(error, 300)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
