"""Training from a config to a finished run's folder.

The loop has one order, **evaluate → save → next batch → step**, and resuming is exact because of
it: a checkpoint of step k is written when all that belongs to step k is on the disk, and what comes
after k is a function of the checkpoint and of k alone.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import CutShort
from googlenet_jax.runtime.distributed import PEER_TIMEOUT, Agreement, Peers, telling, watching
from googlenet_jax.runtime.preemption import catching_signals, end, signal_name
from googlenet_jax.runtime.process import is_first, log, log_settings, make_deterministic
from googlenet_jax.runtime.sharding import (
    create_mesh,
    data_devices,
    place,
    replicate,
    shard_batch,
    whole,
)
from googlenet_jax.runtime.storage import locked, reaching, run_folder
from googlenet_jax.training.callbacks import Callback, create_callbacks, create_named
from googlenet_jax.training.config import resolve
from googlenet_jax.training.finetune import begin_with, tell
from googlenet_jax.training.folder import check_folder, read_config, write_config
from googlenet_jax.training.patterns import check_patterns, parse_multipliers
from googlenet_jax.training.plan import make_plan
from googlenet_jax.training.profile import FOLDER as PROFILE_FOLDER
from googlenet_jax.training.profile import Profile
from googlenet_jax.training.record import RunRecord
from googlenet_jax.training.state import TrainState, eval_variables, is_finite
from googlenet_jax.training.task import Given, Task, with_given
from googlenet_jax.training.trackers import WRITERS
from googlenet_jax.training.writers import (
    CURVES_FILE,
    METRICS_FILE,
    NotFinite,
    TrainingLog,
    Writer,
    check_finite,
    create_writer,
    cut_back,
    draw_if_stale,
    read_metrics,
)
from googlenet_jax.weights.checkpoints import Checkpoints, RunDescription


def train(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    train: Any = None,
    eval: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh | None = None,
    peer_timeout: float = PEER_TIMEOUT,
    profile: bool = False,
) -> None:
    """Trains as a config says, in the folder `workdir`, which may be a gs:// URL; goes on with the
    run that is there, and leaves a finished one as it is.

    Several processes, joined by `jax.distributed`, each call it with the same arguments; all see
    the same folder. One that stands still for `peer_timeout` seconds ends the others. `profile`
    writes a trace of a few steps to `workdir`/profile.

    Args:
      train: the data to train on, in place of the config's: arrays (images, labels) or
        `data.examples.Examples`. Images are [N, H, W, C] or [N, H, W] of uint8, uint16 or floats,
        with mean and std in their units; labels int [N], or for each class whether it is there,
        [N, K].
      eval: likewise by the name of the split, the first of which decides the best checkpoint; None
        evaluates the training data. A run is resumed with the same data.
      callbacks: called at the loop's four places, after the config's.
      mesh: of devices, with an axis "data", in place of the config's `devices.mesh`.

    Raises UserError for a config that is impossible or not the run's, data or checkpoints that
    can't be read, a loss that is not finite, a store that can't be reached.
    """
    if config.get("deterministic", False) is True:
        make_deterministic()  # first: XLA reads its flags as soon as anything asks for a device
    with watching(peer_timeout) as peers:
        folder = run_folder(workdir)
        with reaching(folder):
            data = None if train is None else (train, eval)
            _train(config, folder, peers, profile, data, callbacks, mesh)


def _train(
    config: ConfigDict | Mapping[str, Any],
    workdir: Path,
    peers: Peers | None,
    profile: bool,
    data: Given | None,
    own_callbacks: Sequence[Callback],
    own_mesh: Mesh | None,
) -> None:
    # The config, checked, and what it describes, built: once.
    resolved = resolve(with_given(config, data), kept=read_config(workdir))
    config, fields = resolved.config, resolved.config.to_dict()

    callbacks = create_callbacks(
        config.callbacks.names, config.callbacks.options.to_dict(), own_callbacks
    )
    writers = create_named(
        WRITERS,
        "writers",
        config.writers.names,
        config.writers.options.to_dict(),
        ("folder", "config"),
    )

    # What is trained, on which devices, and when what happens.
    mesh = create_mesh(axes=config.devices.mesh) if own_mesh is None else own_mesh
    task = resolved.open(mesh, data)
    plan = make_plan(resolved, task, mesh)
    when, shapes = plan.when, plan.shapes
    step_key = replicate(plan.step_key, mesh)

    with contextlib.ExitStack() as stack:
        # Where the run stands: its newest whole checkpoint, or the first state.
        signals = stack.enter_context(catching_signals())
        signals.has_state = jax.process_count() > 1
        stop = Agreement(signals, create_mesh(), peers.tick if peers else lambda: None)
        if is_first():
            stack.enter_context(locked(workdir))
        check_folder(workdir, fields, resolved.kind.defaults().to_dict())
        check_patterns("freeze", plan.freeze, shapes.params, must_leave=True)
        factors = parse_multipliers(config.optimizer.rate_multipliers)
        check_patterns("optimizer.rate_multipliers", factors, shapes.params)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                RunDescription(config=fields, **task.description),
                config.checkpoint.keep,
                best=config.checkpoint.best,
                best_mode=config.checkpoint.best_mode,
            )
        )
        stack.enter_context(telling(peers))
        restored = checkpoints.restore_latest(shapes)
        start = restored.step if restored else 0
        cut_short = restored is not None and not restored.evaluated
        if is_first():
            cut_back(workdir / METRICS_FILE, start, drop_evaluation=cut_short)
        if start >= when.total and not cut_short:
            if is_first():
                draw_if_stale(workdir)
            log(f"{workdir}: this run is finished, all {when.total} steps are done")
            return
        log_settings()
        if restored:
            log(f"{workdir}: resuming after step {start}")
            state = restored.state
        else:
            if not config.init_from:
                _warn_of_statistics(task.model, when.total)
            log("initializing parameters (compiling…)")
            initial = resolved.initial() if config.init_from else None
            state = plan.create_state(plan.init_key)
            if initial is not None:
                state, taken = begin_with(state, plan.optimizer, initial, plan.freeze)
                tell(taken, config, initial)
            state = place(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))

        # From here on the folder is this run's: a config that was refused above has left no config
        # that its corrected form would differ from.
        write_config(workdir, fields)
        record = stack.enter_context(RunRecord(workdir, start, config.batch_size))
        further = [_for_config(each, fields) for each in writers.values()]
        writer = stack.enter_context(contextlib.closing(create_writer(workdir, start, further)))
        lines = stack.enter_context(
            contextlib.closing(
                TrainingLog(
                    writer,
                    logs=functools.partial(is_due, when.log_every),
                    epoch=when.epoch,
                    batch_size=config.batch_size,
                    start=start,
                    total=when.total,
                    interval=restored.interval if restored else {},
                    skips=config.skip_not_finite,
                )
            )
        )
        batches = stack.enter_context(contextlib.closing(task.batches(start)))
        trace = stack.enter_context(
            contextlib.closing(Profile(workdir / PROFILE_FOLDER if profile else None, start))
        )

        # The loop: evaluate → save → next batch → step. What belongs to the step that was resumed
        # from is done, unless a signal had cut its evaluation short. A signal stops the run after
        # what is under way, and then the state is saved.
        signals.has_state = signals.has_state or start > 0
        best = None
        try:
            past = _evaluations_until(workdir, start - cut_short) if len(callbacks) else []
            ends = callbacks.started(start, past)
            for step in range(start, when.total + 1):
                last = step == when.total
                undone = step > start or cut_short
                evaluates = undone and (last or is_due(when.eval_every, step))
                saves = undone and (last or is_due(when.checkpoint_every, step))
                best = None
                if evaluates:
                    lines.flush("evaluating")
                    with contextlib.suppress(CutShort):
                        epoch, chosen = step / when.epoch, config.checkpoint.best
                        split = mesh if config.devices.shard else None
                        best, written = _evaluate(
                            task, state, step, epoch, chosen, writer, stop, split
                        )
                        ends = callbacks.evaluated(step, state, written)
                # Asked twice in a row, several processes would wait for the step under way.
                stops = stop()
                if saves or ((stops or ends) and step > start):
                    lines.flush("saving")
                    writer.flush()
                    # The very step whose loss was still finite can spoil them.
                    if not is_finite(state):
                        raise NotFinite(f"step {step}: the parameters or statistics are not finite")
                    evaluated = best is not None or not evaluates
                    checkpoints.save(
                        step, state, metric=best, interval=lines.interval, evaluated=evaluated
                    )
                    record.saved(step)
                    ends = callbacks.saved(step, state)
                    stops = stop()  # a save takes its time
                if last or stops or ends:
                    break
                trace.before(step, state)
                host_batch = next(batches)
                ends = callbacks.batch(step, host_batch)
                batch = shard_batch(host_batch, mesh)
                state, metrics = plan.train_step(state, batch, step_key)
                signals.has_state = True
                ends = callbacks.stepped(step + 1, state, metrics)
                lines.push(step + 1, metrics)
        except jax.errors.JaxRuntimeError as error:
            raise _explained(error, config.batch_size, data_devices(mesh)) from error
        except NotFinite as error:
            raise UserError(f"{error}{_at(lines.rate)}; {_where_to_go_on(checkpoints)}") from error
        checkpoints.wait()
        by = signal_name(stop.signum) or (callbacks.ended_by if step < when.total else "")
        record.end(f"stopped by {by}" if by else "finished")
    if name := signal_name(stop.signum):
        saved = (
            f"after step {step} of {when.total}, which is saved"
            if step
            else "before the first step"
        )
        log(f"{workdir}: stopped by {name} {saved}; the same command resumes it")
        end(stop.signum)
    if callbacks.ended_by and step < when.total:
        log(f"{workdir}: ended by {callbacks.ended_by} after step {step} of {when.total}")
        return
    log(
        f"{workdir}: finished all {when.total} steps; {config.checkpoint.best} {best:.4f}, curves"
        f" in {workdir / CURVES_FILE}"
    )


def _for_config(make: Callable[..., Writer], config: Mapping[str, Any]) -> Callable[[Path], Writer]:
    return lambda folder: make(folder, config)


def _evaluations_until(workdir: Path, step: int) -> list[dict[str, Any]]:
    """The evaluation lines that the folder holds, up to that step's."""
    path = workdir / METRICS_FILE
    lines = read_metrics(path) if path.exists() else []
    return [line for line in lines if "weights" in line and line["step"] <= step]


def _warn_of_statistics(model: Any, steps: int) -> None:
    """Says where batch norm's running statistics can't settle within the run: evaluation, which
    uses them, would stand at chance while training goes well.
    """
    momentum = getattr(model, "bn_momentum", 0.0)
    if getattr(model, "normalization", "batch") == "batch" and momentum**steps > 0.1:
        settling = min(0.9, int(100 * 0.01 ** (1 / steps)) / 100)  # 1 % is left at the end
        log(
            f"batch norm: after all {steps} steps its running statistics still hold"
            f" {100 * momentum**steps:.0f} % of their first values (model.options.bn_momentum"
            f" {momentum:g}); evaluation will be wrong: lower it, such as to {settling:g}, or train"
            " longer"
        )


def is_due(period: float, step: int) -> bool:
    """Whether something that happens every `period` steps happens after `step` steps.

    Each multiple is rounded by itself: with 22.45 steps to an epoch, "1 epoch" is due after 22, 45,
    67, … steps and "2 epochs" after every second of these. Multiples of a rounded duration would
    drift apart.
    """
    count = round(step / period)
    return count > 0 and round(count * period) == step


def _evaluate(
    task: Task,
    state: TrainState,
    step: int,
    epoch: float,
    best: str,
    writer: Writer,
    should_stop: Callable[[], bool],
    mesh: Mesh | None,
) -> tuple[float, list[dict[str, Any]]]:
    """Writes a line for each evaluation split with the weights "raw" and, where they are averaged,
    "ema"; they are gathered on every device where they are split over `mesh`.

    Returns what the best checkpoint is chosen by: the metric `best` on the first split, of the
    average where there is one; and the lines. Raises CutShort where `should_stop()` says so.
    """
    values, lines = [], []
    for split, evaluate in task.evaluations.items():
        for weights in ("raw",) if state.ema is None else ("raw", "ema"):
            variables = eval_variables(state, weights)
            metrics = evaluate(variables if mesh is None else whole(variables, mesh), should_stop)
            check_finite(f"step {step}, {split} ({weights} weights)", metrics)
            line = {"step": step, "epoch": epoch, "split": split, "weights": weights, **metrics}
            writer.write(line)
            lines.append(line)
            shown = ", ".join(
                f"{name} {value:.4f}" for name, value in metrics.items() if name != "examples"
            )
            log(f"epoch {epoch:.1f}, {split}, {weights}: {shown}")
        if best not in metrics:
            names = ", ".join(metrics)
            raise UserError(f"checkpoint.best: expected one of {names}, found {best!r}")
        values.append(metrics[best])
    return values[0], lines


def _explained(error: Exception, batch_size: int, devices: int) -> Exception:
    """What JAX raised, in words where a device's memory was too small."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    return UserError(
        f"batch_size: {batch_size} examples, {batch_size // devices} on each of {devices} devices,"
        " do not fit a device's memory; lower it, raise devices.accumulate, or set"
        " devices.rematerialize=True"
    )


def _at(rate: float | None) -> str:
    return "" if rate is None else f", at learning rate {rate:.6g}"


def _where_to_go_on(checkpoints: Checkpoints) -> str:
    step = checkpoints.latest_step()
    where = "there is no good checkpoint yet"
    if step is not None:
        where = f"the last good checkpoint is {checkpoints.folder / str(step)}"
    return f"{where}; train in another --workdir with a lower schedule.learning_rate"
