"""Batches read by worker processes, in order: a worker that dies is an error with its cause, not a
hang."""

import contextlib
import itertools
import mmap
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import DTypeLike

from googlenet_jax.errors import UserError

DEPTH = 2  # batches that a worker reads ahead
_PATIENCE = 5.0  # seconds that a worker has to end by itself
_IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Batches(Protocol):
    """Batch k by its number: a dictionary with an `image` array of one shape, and whatever can be
    pickled."""

    def __getitem__(self, number: int, /) -> dict[str, Any]: ...


def read_in_workers(
    make_batches: Callable[[], Batches],
    image_shape: Sequence[int],
    numbers: range,
    workers: int,
    dtype: DTypeLike = np.uint8,
) -> Generator[dict[str, Any], None, None]:
    """Yields the batches of these numbers, read by `workers` processes, of which the i-th reads
    every `workers`-th batch.

    The processes are fresh interpreters, which import neither the caller's script nor start JAX.
    Images come back through memory shared with each worker, and are copied out of it.

    Args:
        make_batches: what each worker calls for its batches; it is sent there by pickle.
        image_shape, dtype: of each batch's `image`.
        numbers: of the batches, in the order in which they are wanted.
        workers: how many processes; at least 1.

    Raises:
        UserError: if `make_batches` can't be sent, a worker has died, or reading raised it there.
        RuntimeError: with the worker's traceback, if reading raised anything else.
    """
    try:
        pickled = pickle.dumps((make_batches, tuple(image_shape), np.dtype(dtype)))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(
            f"data.workers: this data set can't be sent to worker processes ({error}); use "
            "threads, data.workers = 0"
        ) from error
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(contextlib.closing(_Worker(pickled, image_shape, index, dtype)))
            for index in range(workers)
        ]
        for worker in started:  # before they are waited for one by one, below
            stack.callback(worker.hang_up)
        asked = iter(numbers)
        for _ in range(DEPTH):
            for worker in started:
                worker.ask(next(asked, None))
        for worker, _ in zip(itertools.cycle(started), numbers, strict=False):
            batch = worker.receive()
            worker.ask(next(asked, None))
            yield batch


class _Worker:
    """A process, seen from the parent. Its answers come in the order of the questions, DEPTH of
    which may be open."""

    def __init__(
        self, pickled: bytes, image_shape: Sequence[int], index: int, dtype: DTypeLike
    ) -> None:
        self._index = index
        self._open: list[int] = []  # numbers of the batches that are awaited
        with _explained(), tempfile.TemporaryFile(dir=_IN_MEMORY) as memory:
            _reserve(memory.fileno(), DEPTH * int(np.prod(image_shape)) * np.dtype(dtype).itemsize)
            self._images = _slots(memory.fileno(), image_shape, dtype)
            self._connection, theirs = multiprocessing.connection.Pipe()
            descriptors = (theirs.fileno(), memory.fileno())
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from googlenet_jax.data.workers import _serve; _serve{descriptors}"
            )
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code], pass_fds=descriptors, stdin=subprocess.DEVNULL
                )
        self._send(pickled)

    def ask(self, number: int | None) -> None:
        """Asks for the batch of this number; None asks for nothing."""
        if number is not None:
            self._open.append(number)
            self._send(pickle.dumps(number))

    def receive(self) -> dict[str, Any]:
        """Waits for the answer to the oldest open question."""
        number = self._open.pop(0)
        try:
            kind, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise UserError(self._death(number)) from error
        if kind == "user error":
            raise UserError(answer)
        if kind == "error":
            raise RuntimeError(f"worker process {self._index} failed at batch {number}:\n{answer}")
        return {"image": self._images[answer.pop("slot")].copy(), **answer}

    def hang_up(self) -> None:
        """Closes the pipe, at which the process ends when it has read its batch."""
        self._connection.close()

    def close(self) -> None:
        """Ends the process."""
        self.hang_up()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, pickled: bytes) -> None:
        with contextlib.suppress(OSError):  # a dead process is reported where its answer is awaited
            self._connection.send_bytes(pickled)

    def _death(self, number: int) -> str:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = 0
        if code >= 0:
            cause = f"ended with exit code {code}; what it wrote stands above"
        else:
            cause = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                cause += (
                    ", perhaps for want of memory: try fewer data.workers or a smaller batch_size"
                )
        who = f"worker process {self._index} (pid {self._process.pid})"
        return f"data.workers: {who} {cause}; it was to read batch {number}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = Path(_IN_MEMORY or tempfile.gettempdir())
        raise UserError(
            f"data.workers: can't start a worker or share memory with it in {where} ({error}); "
            "lower data.workers"
        ) from error


def _reserve(descriptor: int, size: int) -> None:
    """Makes the file this large, really: writing later to a full /dev/shm would end the process
    without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _slots(descriptor: int, image_shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    shape, kind = (DEPTH, *image_shape), np.dtype(dtype)
    memory = mmap.mmap(descriptor, int(np.prod(shape)) * kind.itemsize)
    return np.frombuffer(memory, kind).reshape(shape)


def _serve(pipe: int, memory: int) -> None:
    """What a worker does: answers until its parent closes the pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and closes the pipe
    cv2.setNumThreads(0)  # the workers are the parallelism
    with (
        contextlib.suppress(EOFError, OSError),
        multiprocessing.connection.Connection(pipe) as connection,
    ):
        make_batches, image_shape, dtype = pickle.loads(connection.recv_bytes())
        images = _slots(memory, image_shape, dtype)
        batches: Batches | None = None
        place = 0
        while True:
            number = pickle.loads(connection.recv_bytes())
            try:
                batches = make_batches() if batches is None else batches
                batch = dict(batches[number])
                images[place % DEPTH] = batch.pop("image")
                connection.send(("batch", {"slot": place % DEPTH, **batch}))
            except UserError as error:
                connection.send(("user error", str(error)))
            except Exception:
                connection.send(("error", traceback.format_exc()))
            place += 1
