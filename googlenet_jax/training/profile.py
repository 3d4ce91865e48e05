"""A trace of a few training steps, which TensorBoard's profiler and Perfetto open."""

from pathlib import Path
from typing import Any

import jax

from googlenet_jax.runtime.process import log
from googlenet_jax.runtime.storage import storage_of, writing

FOLDER = "profile"
SKIPPED = 5  # steps that compile and warm up
STEPS = 5  # that are traced


class Profile:
    """Traces STEPS steps of this process, after SKIPPED of its own; with no folder, nothing."""

    def __init__(self, folder: Path | None, start: int) -> None:
        """For a run resumed after `start` steps; the trace goes to `folder`."""
        self._folder, self._first = folder, start + SKIPPED
        self._mirror = storage_of(folder).mirror(folder) if folder else None
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Begins or ends the trace before the step that leads from `state`, after `step` steps."""
        if self._mirror is None:
            return
        if step == self._first:
            jax.block_until_ready(state)
            with writing(self._mirror.path):
                jax.profiler.start_trace(self._mirror.path)
            self._running = True
        elif step == self._first + STEPS:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way, and says where it is."""
        if not self._running or self._mirror is None:
            return
        self._running = False
        with writing(self._mirror.path):
            jax.profiler.stop_trace()
        self._mirror.close()
        log(
            f"traced: {self._folder}; see it with `tensorboard --logdir {self._folder}`, or open"
            " its *.trace.json.gz in ui.perfetto.dev"
        )
