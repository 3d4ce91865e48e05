"""Where a run's metrics go: `metrics.jsonl`, TensorBoard events and `curves.png`, behind one small
interface; and the training lines.

A line is a dictionary of JSON values: step, epoch, split, loss, top1, top5 (absent below five
classes); a training line also has loss_main, loss_aux1, …, learning_rate and images_per_second, an
evaluation line examples and weights, "raw" or "ema".
"""

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.process import is_first, log, shows_progress
from googlenet_jax.runtime.storage import storage_of, write_atomically, write_text, writing
from googlenet_jax.training.config import LARGEST_STEPS
from googlenet_jax.training.curves import draw_curves

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
EVENTS_FOLDER = "tensorboard"
SECONDS_BETWEEN_CURVES = 20  # a picture takes about half a second
SECONDS_BETWEEN_UPLOADS = 30  # of training lines to an object store

Line = dict[str, Any]


class Writer:
    """Takes lines and does nothing with them: the writer of every process but the first, and the
    interface of the others.
    """

    def write(self, line: Line) -> None:
        """Takes one line."""

    def flush(self) -> None:
        """Flushes to disk what was taken."""

    def close(self) -> None:
        """Flushes, and ends."""


class Writers(Writer):
    """Several writers as one."""

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers

    def write(self, line: Line) -> None:
        for writer in self._writers:
            writer.write(line)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonLinesWriter(Writer):
    """Appends to a file of one JSON object a line; `flush` flushes to disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        with writing(self._file.name):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()  # so that a killed process leaves whole lines, and `tail -f` shows them

    def flush(self) -> None:
        with writing(self._file.name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._file.name), self._file:
            os.fsync(self._file.fileno())


class TensorBoardWriter(Writer):
    """Writes TensorBoard events, tags such as "loss/train" and "top1/test_ema"; TensorBoard hides
    older events of steps after `step`.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Here, since it imports PyTorch where that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: Line) -> None:
        curve = "_".join(line[key] for key in ("split", "weights") if key in line)
        for name in line.keys() - {"step", "epoch", "split", "weights", "examples"}:
            with writing(self._events.logdir):
                self._events.add_scalar(f"{name}/{curve}", line[name], line["step"])

    def flush(self) -> None:
        with writing(self._events.logdir):
            self._events.flush()

    def close(self) -> None:
        with writing(self._events.logdir):
            self._events.close()


class CurvesWriter(Writer):
    """Draws `curves.png` anew from `metrics.jsonl`: after an evaluation, but no sooner than
    SECONDS_BETWEEN_CURVES, and at the end.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._drawn_at = -math.inf

    def write(self, line: Line) -> None:
        if "weights" in line and time.monotonic() - self._drawn_at >= SECONDS_BETWEEN_CURVES:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        lines = read_metrics(self._workdir / METRICS_FILE)
        if lines:
            path = self._workdir / CURVES_FILE
            with writing(path):
                write_atomically(
                    path, lambda partial: draw_curves({self._workdir.name: lines}, partial)
                )
        self._drawn_at = time.monotonic()


class MirrorWriter(Writer):
    """Lets `make`'s writers fill the folder that stands for `workdir` on this machine. What they
    have changed comes to `workdir` at `flush`, at the end, after an evaluation, and else every
    SECONDS_BETWEEN_UPLOADS.
    """

    def __init__(self, workdir: Path, make: Callable[[Path], Writer]) -> None:
        self._mirror = storage_of(workdir).mirror(workdir)
        metrics, here = workdir / METRICS_FILE, self._mirror.path / METRICS_FILE
        if metrics.exists() and not here.exists():
            here.write_bytes(metrics.read_bytes())
        self._writer = make(self._mirror.path)
        self._uploaded_at = time.monotonic()

    def write(self, line: Line) -> None:
        self._writer.write(line)
        if "weights" in line or time.monotonic() - self._uploaded_at >= SECONDS_BETWEEN_UPLOADS:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._mirror.upload()
        self._uploaded_at = time.monotonic()

    def close(self) -> None:
        with contextlib.closing(self._mirror):
            self._writer.close()


def draw_if_stale(workdir: Path) -> None:
    """Draws `curves.png` where it is missing or older than `metrics.jsonl`: the run was killed
    between the two.
    """
    curves, metrics = workdir / CURVES_FILE, workdir / METRICS_FILE
    changed_at = storage_of(workdir).changed_at
    if metrics.exists() and not (curves.exists() and changed_at(curves) >= changed_at(metrics)):
        CurvesWriter(workdir).close()


def create_writer(
    workdir: Path, step: int, further: Sequence[Callable[[Path], Writer]] = ()
) -> Writer:
    """The writers of a run resumed after `step` steps, and `further` ones made for its folder; in
    every process but the first, one that does nothing.
    """
    if not is_first():
        return Writer()

    def make(folder: Path) -> Writer:
        return Writers(
            JsonLinesWriter(folder / METRICS_FILE),
            TensorBoardWriter(folder / EVENTS_FOLDER, step),
            CurvesWriter(folder),
            *(each(folder) for each in further),
        )

    return MirrorWriter(workdir, make)


class NotFinite(UserError):
    """Training has run into infinities or what is not a number."""


def check_finite(where: str, values: Mapping[str, float]) -> None:
    """Raises NotFinite, naming the value, unless all are finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(f"{where}: the {name} is {value}")


class TrainingLog:
    """The training lines and the progress bar. A line is the mean over the steps since the last;
    `learning_rate` is its own step's, and missing where the optimizer follows no schedule.

    Metrics are fetched one step late, so that the device is never idle meanwhile. A checkpoint
    keeps the sums of the interval that has begun: the lines of a resumed run are those of the run
    that was never stopped, images_per_second apart.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        logs: Callable[[int], bool],
        epoch: float,
        batch_size: int,
        start: int,
        total: int,
        interval: Mapping[str, Any],
        skips: int = 0,
    ) -> None:
        """For a run resumed after `start` of `total` steps, an `epoch` being so many.

        `logs` says after which steps a line is due; `interval` is what the checkpoint of step
        `start` kept of the interval that had begun, or {}. So many steps whose metrics say
        "skipped" are let pass.
        """
        self._writer, self._logs = writer, logs
        self._epoch, self._batch_size = epoch, batch_size
        self._steps: int = interval.get("steps", 0)
        self._sums: dict[str, float] = dict(interval.get("sums", {}))
        self._skips, self._skipped = skips, interval.get("skipped", 0)
        self._waiting: tuple[int, Mapping[str, jax.Array]] | None = None
        self._timed_steps, self._seconds, self._line_time = 0, 0.0, time.perf_counter()
        self._own_steps = 0  # taken by this process since the last line, timed or not
        self.rate: float | None = None  # of the last step whose metrics have been fetched
        # None where what comes next is not to be timed: compilation, evaluation, saving.
        self._fetched_at: float | None = None
        self._paused_at = time.time()
        self._bar = tqdm(
            desc="compiling…",
            initial=start,
            total=total,
            unit=" images",
            unit_scale=batch_size,
            disable=not is_first(),
            mininterval=0.5 if shows_progress() else 30,
        )
        # The first step compiles, for half a minute or more: whoever watches sees time pass.
        self._moving = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="compiling", daemon=True)
        if shows_progress() and not self._bar.disable:
            self._ticker.start()

    def _tick(self) -> None:
        start = time.monotonic()
        while not self._moving.wait(1.0):
            self._bar.set_description(f"compiling, {time.monotonic() - start:.0f} s")

    @property
    def interval(self) -> dict[str, Any]:
        """What a checkpoint keeps of the interval that has begun; all metrics must have been
        flushed.
        """
        kept = {"steps": self._steps, "sums": self._sums}
        return {**kept, "skipped": self._skipped} if self._skips else kept

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step that led to `step`, still being computed.

        Raises NotFinite for an earlier step's loss.
        """
        self._fetch()
        self._waiting = step, metrics

    def flush(self, what: str) -> None:
        """Waits for the last step's metrics and shows `what` follows, which is not timed.

        Raises NotFinite for the step's loss.
        """
        self._fetch()
        self._moving.set()
        self._bar.set_description(what)
        self._fetched_at, self._paused_at = None, time.time()

    def close(self) -> None:
        """Ends the bar."""
        self._moving.set()
        if self._ticker.is_alive():
            self._ticker.join()
        self._bar.close()

    def _fetch(self) -> None:
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._moving.set()
        now = time.perf_counter()
        if self._fetched_at is None:
            self._skip_pause()
        else:
            self._timed_steps += 1
            self._seconds += now - self._fetched_at
            self._bar.update()
        self._fetched_at = now
        self.rate = values.pop("learning_rate", None)
        self._own_steps += 1
        if values.pop("skipped", 0):
            self._skip(step, values)
        else:
            check_finite(f"step {step}", values)
            self._steps += 1
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        self._bar.set_description("training", refresh=False)
        if self._logs(step) and self._steps:
            self._write(step, now)

    def _skip(self, step: int, values: Mapping[str, float]) -> None:
        """Counts a step that was left out; raises NotFinite beyond the limit."""
        self._skipped += 1
        name = next(name for name, value in values.items() if not math.isfinite(value))
        if self._skipped > self._skips:
            raise NotFinite(
                f"step {step}: the {name} is {values[name]}, after {self._skips} steps left out for"
                " that"
            )
        log(
            f"step {step}: the {name} is {values[name]}; left out, {self._skipped} of at most"
            f" {self._skips}"
        )

    def _skip_pause(self) -> None:
        """Takes the first step after a pause out of the bar's rate and of its time left."""
        if self._bar.disable:
            return
        self._bar.n, self._bar.last_print_n = self._bar.n + 1, self._bar.last_print_n + 1
        self._bar.initial += 1
        pause = time.time() - self._paused_at
        self._bar.start_t, self._bar.last_print_t = (
            self._bar.start_t + pause,
            self._bar.last_print_t + pause,
        )

    def _write(self, step: int, now: float) -> None:
        means = {name: total / self._steps for name, total in self._sums.items()}
        # Where no step of the interval was timed (a line each step), all of its time counts.
        timed, seconds = (
            (self._timed_steps, self._seconds)
            if self._timed_steps
            else (self._own_steps, now - self._line_time)
        )
        if self._skips:
            means["skipped"] = self._skipped
        rate = {} if self.rate is None else {"learning_rate": self.rate}
        speed = {**rate, "images_per_second": timed * self._batch_size / seconds}
        self._writer.write(
            {"step": step, "epoch": step / self._epoch, "split": "train", **means, **speed}
        )
        self._steps, self._sums = 0, {}
        self._timed_steps, self._own_steps, self._seconds, self._line_time = 0, 0, 0.0, now


def read_metrics(path: Path) -> list[Line]:
    """The lines of a `metrics.jsonl`, without a last one that is half-written.

    Raises UserError for a file that is missing or broken.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no {path.name} in it; give the --workdir of a run that train.py has"
            " begun"
        )
    texts = path.read_bytes().split(b"\n")
    lines = []
    # What follows the last newline is empty, or was being written when the process was killed.
    for number, text in enumerate(texts[:-1], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: expected a JSON object, found {text[:40]!r}; remove that"
                " line"
            ) from error
        if not _is_line(line):
            raise UserError(
                f"{path}, line {number}: expected an object with 'step', 'epoch', 'split' and "
                f"finite numbers, found {text[:60]!r}; remove that line"
            )
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    """Whether a JSON value is a line as these writers make them."""
    if not isinstance(line, dict) or not isinstance(line.get("split"), str):
        return False
    if type(line.get("step")) is not int or not 0 <= line["step"] <= LARGEST_STEPS:
        return False
    if "epoch" not in line or line.get("weights", "raw") not in ("raw", "ema"):
        return False
    values = [value for name, value in line.items() if name not in ("split", "weights")]
    return all(type(value) in (int, float) and abs(value) <= sys.float_info.max for value in values)


def cut_back(path: Path, step: int, *, drop_evaluation: bool = False) -> None:
    """Removes the lines after `step` from a `metrics.jsonl`, and a half-written last one; the file
    need not exist. `drop_evaluation` removes the evaluation lines of `step` too.

    The new file replaces the old one atomically: killed at any moment, one of the two is there,
    whole.
    """
    if not path.exists():
        return
    kept = "".join(
        json.dumps(line, ensure_ascii=False) + "\n"
        for line in read_metrics(path)
        if line["step"] < step
        or (line["step"] == step and not (drop_evaluation and "weights" in line))
    )
    # As bytes: a last line that was cut off may end inside a character.
    if path.read_bytes() != kept.encode():
        write_text(path, kept)
