"""Training from a config to a finished run's folder.

The loop has one order, **evaluate → save → next batch → step**, and resuming is exact because of it: a checkpoint of step k is written when
all that belongs to step k is on the disk, and what comes after k is a function of the checkpoint and of k alone.
"""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from googlenet_jax.data.pipeline import train_batches
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source, load_source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import evaluate_source
from googlenet_jax.models.registry import model_options
from googlenet_jax.training.checkpoint import FOLDER, Checkpoints, RunDescription
from googlenet_jax.training.config import build_model, changed_fields, is_due, steps, training_size, validate
from googlenet_jax.training.mesh import check_batch_size, create_mesh, replicate, replicated, shard_batch
from googlenet_jax.training.optimizer import create_optimizer
from googlenet_jax.training.state import TrainState, eval_variables, make_create_state
from googlenet_jax.training.step import Metrics, make_eval_step, make_train_step
from googlenet_jax.training.writers import METRICS_FILE, Writer, create_writer, cut_back, draw_if_stale, write_atomically

CONFIG_FILE = "config.json"


class Plan:
    """When what happens, counted in steps taken. `steps_per_epoch` is not whole where the batch size does not divide the examples."""

    def __init__(self, config: ConfigDict, examples: int) -> None:
        """The plan of a recipe for a training split of so many examples."""
        self._config = config
        self.steps_per_epoch = examples / config.batch_size
        self.total_steps = steps(config.duration, self.steps_per_epoch)

    def evaluates(self, step: int) -> bool:
        """Whether the state after `step` steps is evaluated."""
        return step == self.total_steps or is_due(self._config.eval_every, step, self.steps_per_epoch)

    def saves(self, step: int) -> bool:
        """Whether the state after `step` steps is saved."""
        return step == self.total_steps or is_due(self._config.checkpoint_every, step, self.steps_per_epoch)

    def logs(self, step: int) -> bool:
        """Whether a training line ends with that step."""
        return is_due(self._config.log_every, step, self.steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Job:
    """All that the loop uses and never changes. `train_step` and `eval_step` are as `training.step` makes them."""

    config: ConfigDict
    plan: Plan
    mesh: Mesh
    preprocessing: Preprocessing
    train_source: Source
    eval_sources: tuple[Source, ...]
    description: RunDescription
    train_step: Callable[..., tuple[TrainState, Metrics]]
    eval_step: Callable[..., Metrics]
    key: jax.Array


class _NotFinite(UserError):
    """Training has run into infinities or what is not a number."""


def train(config: ConfigDict, workdir: str | Path) -> None:
    """Trains as `config` says, in the folder `workdir`; goes on with the run that is there, and leaves a finished one as it is.

    Raises UserError for a config that is impossible or not the run's, data or checkpoints that can't be read, a loss that is not finite.
    """
    workdir = Path(workdir)
    validate(config)
    _check_workdir(workdir, config)
    job, first_state, shapes = _set_up(config)
    _write_config(workdir, config)
    with contextlib.closing(Checkpoints(workdir, job.description, config.checkpoint.keep)) as checkpoints:
        start, state, interval = _restore(checkpoints, first_state, shapes, workdir)
        if start >= job.plan.total_steps:
            if jax.process_index() == 0:
                draw_if_stale(workdir)
            _say(f"{workdir}: this run is finished, all {job.plan.total_steps} steps are done")
            return
        if start:
            _say(f"{workdir}: going on after step {start}")
        with (
            contextlib.closing(create_writer(workdir, start, jax.process_index())) as writer,
            contextlib.closing(TrainingLog(job.plan, config.batch_size, writer, start, interval)) as log,
            contextlib.closing(_batches(job, start)) as batches,
        ):
            try:
                _loop(job, state, start, batches, checkpoints, log, writer)
            except _NotFinite as error:
                raise UserError(f"{error}, at learning rate {log.rate:.6g}; {_where_to_go_on(checkpoints)}") from error


def _loop(
    job: Job,
    state: TrainState,
    start: int,
    batches: Iterator[Mapping[str, Any]],
    checkpoints: Checkpoints,
    log: "TrainingLog",
    writer: Writer,
) -> None:
    """Takes the steps from `start` to the plan's last: evaluate → save → next batch → step."""
    for step in range(start, job.plan.total_steps + 1):
        top1 = None
        if job.plan.evaluates(step) and step > start:
            log.flush("evaluating (the first time compiles…)")
            top1 = _evaluate(job, state, step, writer)
        if job.plan.saves(step) and step > start:
            log.flush("saving")
            writer.flush()
            _check_finite(state, step)
            checkpoints.save(step, state, top1=top1, interval=log.interval)
        if step == job.plan.total_steps:
            break
        batch = shard_batch(next(batches), job.mesh)
        state, metrics = job.train_step(state, batch, job.key)
        log.push(step + 1, metrics)


def _set_up(config: ConfigDict) -> tuple[Job, Callable[[], TrainState], TrainState]:
    """Opens the data and builds model, optimizer and steps; what makes the state before the first step, and that state's shapes."""
    mesh = create_mesh()
    check_batch_size(config.batch_size, mesh)
    splits = (config.data.train_split, *config.data.eval_splits)
    train_source, *eval_sources = (load_source(config.data.name, split, config.data.dir or None) for split in splits)
    plan = Plan(config, len(train_source))
    preprocessing = Preprocessing.from_dict(config.preprocessing.to_dict())
    model = build_model(config, train_source.num_classes)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    optimizer, schedule = create_optimizer(config, plan.steps_per_epoch, plan.total_steps)
    job = Job(
        config=config,
        plan=plan,
        mesh=mesh,
        preprocessing=preprocessing,
        train_source=train_source,
        eval_sources=tuple(eval_sources),
        description=RunDescription(
            model_name=config.model.name,
            model_options=model_options(model),
            config=config.to_dict(),
            class_names=tuple(train_source.class_names),
            preprocessing=preprocessing.to_dict(),
        ),
        train_step=make_train_step(model, config, optimizer, schedule, preprocessing, mesh, plan.steps_per_epoch),
        eval_step=make_eval_step(model, preprocessing, mesh),
        key=replicate(step_key, mesh),
    )
    create_state = make_create_state(model, config, optimizer, preprocessing.size)
    whole = replicated(mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), create_state.eval_shape(init_key))
    return job, lambda: replicate(create_state(init_key), mesh), shapes


def _check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where the folder holds a run with another config, naming each changed field."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        if (workdir / FOLDER).exists():
            raise UserError(f"{workdir} holds checkpoints but no {CONFIG_FILE}; put it back, or take another --workdir")
        return
    try:
        changed = changed_fields(json.loads(path.read_text(encoding="utf-8")), config.to_dict())
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a recipe as JSON, found {error}; put the file back, or take another --workdir") from error
    if changed:
        raise UserError(f"{workdir} holds a run with another config ({'; '.join(changed)}); take its values, or another --workdir")


def _write_config(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder and its `config.json`. Raises UserError where that can't be."""
    if jax.process_index() > 0:
        return
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--workdir: can't write in {workdir}: {error.strerror}; choose another folder") from error


def _restore(
    checkpoints: Checkpoints, first_state: Callable[[], TrainState], shapes: TrainState, workdir: Path
) -> tuple[int, TrainState, dict[str, Any]]:
    """Where the run stands: step, state and the begun interval of the training log, with `metrics.jsonl` cut back to that step."""
    restored = checkpoints.restore_latest(shapes)
    start = restored.step if restored else 0
    if jax.process_index() == 0:
        cut_back(workdir / METRICS_FILE, start)
    if restored:
        return start, restored.state, restored.interval
    _say("drawing the first parameters (compiling…)")
    return 0, first_state(), {}


def _batches(job: Job, start: int) -> Any:
    """Global batch k for the step from k to k + 1, from k = `start`; this process's share of each."""
    return train_batches(
        job.train_source,
        batch_size=job.config.batch_size,
        size=training_size(job.config),
        augment=job.config.augment,
        seed=job.config.seed,
        start_step=start,
        threads=job.config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _evaluate(job: Job, state: TrainState, step: int, writer: Writer) -> float:
    """Writes a line for each evaluation split with the weights "raw" and, where they are averaged, "ema".

    Returns what the best checkpoint is chosen by: top-1 on the first split, of the average where there is one.
    """
    top1 = {}
    for source in job.eval_sources:
        for weights in ("raw",) if state.ema is None else ("raw", "ema"):
            metrics = evaluate_source(
                job.eval_step,
                eval_variables(state, weights),
                source,
                batch_size=job.config.eval_batch_size,
                preprocessing=job.preprocessing,
                mesh=job.mesh,
                threads=job.config.data.threads,
                progress=sys.stderr.isatty(),
            )
            if not math.isfinite(metrics["loss"]):
                raise _NotFinite(f"step {step}: the loss on {source.split} ({weights} weights) is {metrics['loss']}")
            epoch = step / job.plan.steps_per_epoch
            writer.write({"step": step, "epoch": epoch, "split": source.split, "weights": weights, **metrics})
            _say(f"epoch {epoch:.1f}, {source.split}, {weights}: loss {metrics['loss']:.4f}, top-1 {100 * metrics['top1']:.2f} %")
        top1[source.split] = metrics["top1"]
    return top1[job.eval_sources[0].split]


class TrainingLog:
    """The training lines and the progress bar. A line is the mean over the steps since the last; `learning_rate` is its own step's.

    Metrics are fetched one step late, so that the device is never idle meanwhile. A checkpoint keeps the sums of the interval that has
    begun: the lines of a resumed run are those of the run that was never stopped, images_per_second apart.
    """

    def __init__(self, plan: Plan, batch_size: int, writer: Writer, start: int, interval: Mapping[str, Any]) -> None:
        self._plan, self._batch_size, self._writer = plan, batch_size, writer
        self._steps: int = interval.get("steps", 0)
        self._sums: dict[str, float] = dict(interval.get("sums", {}))
        self._waiting: tuple[int, Metrics] | None = None
        self._timed_steps, self._seconds, self._line_time = 0, 0.0, time.perf_counter()
        self._own_steps = 0  # taken by this process since the last line, timed or not
        self.rate = math.nan  # of the last step whose metrics have been fetched
        self._fetched_at: float | None = None  # None where what comes next is not to be timed: compilation, evaluation, saving
        self._bar = tqdm(
            desc="compiling…",
            initial=start,
            total=plan.total_steps,
            unit=" images",
            unit_scale=batch_size,
            disable=jax.process_index() > 0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    @property
    def interval(self) -> dict[str, Any]:
        """What a checkpoint keeps of the interval that has begun; all metrics must have been flushed."""
        return {"steps": self._steps, "sums": self._sums}

    def push(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step that led to `step`, still being computed. Raises _NotFinite for an earlier step's loss."""
        self._fetch()
        self._waiting = step, metrics

    def flush(self, what: str) -> None:
        """Waits for the last step's metrics and shows `what` follows, which is not timed. Raises _NotFinite for the step's loss."""
        self._fetch()
        self._bar.set_description(what)
        self._fetched_at = None

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _fetch(self) -> None:
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        if self._fetched_at is not None:
            self._timed_steps += 1
            self._seconds += now - self._fetched_at
        self._fetched_at = now
        self.rate = values.pop("learning_rate")
        if not math.isfinite(values["loss"]):
            raise _NotFinite(f"step {step}: the loss is {values['loss']}")
        self._steps += 1
        self._own_steps += 1
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        self._bar.set_description("training", refresh=False)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        self._bar.update()
        if self._plan.logs(step):
            self._write(step, now)

    def _write(self, step: int, now: float) -> None:
        means = {name: total / self._steps for name, total in self._sums.items()}
        # Where no step of the interval was timed (a line each step), all of its time counts.
        timed, seconds = (self._timed_steps, self._seconds) if self._timed_steps else (self._own_steps, now - self._line_time)
        speed = {"learning_rate": self.rate, "images_per_second": timed * self._batch_size / seconds}
        self._writer.write({"step": step, "epoch": step / self._plan.steps_per_epoch, "split": "train", **means, **speed})
        self._steps, self._sums = 0, {}
        self._timed_steps, self._own_steps, self._seconds, self._line_time = 0, 0, 0.0, now


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _check_finite(state: TrainState, step: int) -> None:
    """A state can be spoilt by the very step whose loss was still finite: such a state is never saved."""
    if not _is_finite(state):
        raise _NotFinite(f"step {step}: the parameters or statistics are not finite")


def _where_to_go_on(checkpoints: Checkpoints) -> str:
    step = checkpoints.latest_step()
    where = f"the last good checkpoint is {checkpoints.folder / str(step)}" if step is not None else "there is no good checkpoint yet"
    return f"{where}; train in another --workdir with a lower schedule.learning_rate"


def _say(text: str) -> None:
    """A line for the person, on standard error, above the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)
