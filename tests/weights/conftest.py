"""Reading foreign files without a child process for each: the same messages, through memory."""

import io
import os
from typing import Any

import numpy as np
import pytest

from googlenet_jax.weights import convert, isolation
from googlenet_jax.weights.parsers.limits import Request


class _NoWatch:
    expired = False

    def parsing(self) -> None:
        pass


def read_in_process(
    path: str | os.PathLike[str], kind: str, model_bytes: int, ema: bool = False
) -> dict[str, np.ndarray]:
    """`isolation.read_tensors` but for the child process and its limit on memory."""
    request = Request(os.fspath(path), kind, 2 * model_bytes + isolation.SLACK // 16, ema)
    out = io.BytesIO()
    isolation.send_tensors(request, out)
    out.seek(0)
    watch: Any = _NoWatch()
    return isolation._receive(out, str(path), kind, request.limit, watch)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `read_weights` read in this process."""
    monkeypatch.setattr(convert, "read_tensors", read_in_process)
