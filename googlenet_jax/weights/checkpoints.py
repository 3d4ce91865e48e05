"""Checkpoints of a run: the one module that knows Orbax.

Built on `orbax.checkpoint.CheckpointManager` (v0). It is not deprecated, its files are read by
`orbax.checkpoint.v1` too, and v1's names still move from release to release; when v1 has become
Orbax's top level, this file alone changes.

A state is stored as a flat dictionary, name -> array, where a name is the path in the state's tree
(`params/inception_3a/conv_1x1/kernel`). Beside it lies JSON metadata: format version, step, model
name and options, config, class names, preprocessing, and for each array its shape, dtype and
CRC-32. Orbax's format (OCDBT) checks its own indices, not the arrays' bytes: damage to those the
CRC-32 finds.
"""

import dataclasses
import itertools
import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import create_model, list_models, model_options, option_defaults
from googlenet_jax.runtime.process import is_first
from googlenet_jax.runtime.storage import reaching, run_folder, storage_of, writing
from googlenet_jax.weights.trained_model import TrainedModel

FORMAT_VERSION = 1
FOLDER = "checkpoints"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of an unfinished one of a file system
COMMITTED = ocp.path.atomicity.COMMIT_SUCCESS_FILE  # in a finished checkpoint of a store


class _Damaged(Exception):
    """This checkpoint can't be read back as it was written; the text says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What a checkpoint says about the run it belongs to: plain JSON values, enough to build the
    model again.

    `model_options` are those of `models.registry.model_options`, `preprocessing` is
    `Preprocessing.to_dict()` (empty where images have none), `class_names` empty where there are no
    classes, `config` the whole config, `data` what tells the training split from another
    (`Source.identity`; empty where nothing is known). `part` is the path of the variables that are
    the model's, such as "encoder", where a task trains more than it: `gj.load` gives these.
    """

    model_name: str
    model_options: dict[str, Any]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON has it: tuples become lists, so that what was written compares equal to
        what is read.
        """
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name != "part" or value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunDescription":
        """Inverse of `to_json`; keys that this class does not have are left aside."""
        names = [field.name for field in dataclasses.fields(cls)]
        later = ("data", "part")  # older checkpoints have none
        known = {name: values[name] for name in names if name not in later or name in values}
        return cls(**{**known, "class_names": tuple(values["class_names"])})


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state read back: `step` is the number of steps taken; `interval` and `evaluated` are what
    the loop gave to `save`.
    """

    step: int
    state: Any
    interval: dict[str, Any]
    evaluated: bool


class Checkpoints:
    """The checkpoints of one run, for the process that trains it: the last `keep` and the best
    stay, older ones are deleted.
    """

    def __init__(
        self,
        workdir: str | Path,
        description: RunDescription,
        keep: int,
        *,
        best: str = "top1",
        best_mode: str = "max",
    ) -> None:
        """Opens `workdir`/checkpoints, which need not exist; what a save that was cut short has
        left there is named and removed.

        `best` is the name of the metric that decides which is the best, and `best_mode` whether its
        highest value ("max") or its lowest ("min") is that.
        """
        self.folder = _folder(run_folder(workdir))
        self._description, self._best = description, best
        if is_first():
            _tidy(self.folder)
        multihost_utils.sync_global_devices("the folder of checkpoints is tidy")
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=_metric,
                reverse=best_mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # Without it the manager writes no metrics, and forgets the best at a restart.
                best_fn=_metric,
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "metadata"),
        )

    def save(
        self,
        step: int,
        state: Any,
        *,
        metric: float | None,
        interval: Mapping[str, Any],
        evaluated: bool = True,
    ) -> None:
        """Starts saving `state` after `step` steps, and returns as soon as the arrays are copied to
        the host.

        `metric` is the value that decides which is the best, where this step was evaluated;
        `interval` is JSON that the loop wants back on resuming, and so is `evaluated`: false where
        this step's evaluation was cut short. Such a checkpoint is replaced when the evaluation has
        been made up for. Raises UserError where the disk refuses, also for a save begun earlier.
        """
        unevaluated = self.folder / f"unevaluated-{step}"
        replaces = step in self._manager.all_steps()
        if replaces:
            with writing(self.folder):
                self._first(lambda: _rename(self.folder / str(step), unevaluated))
            self._manager.reload()
        arrays = _flatten(state)
        content = {
            "format_version": FORMAT_VERSION,
            "step": step,
            **self._description.to_json(),
            "interval": dict(interval),
            "evaluated": evaluated,
            "arrays": {
                name: {**_shape_and_dtype(array), "crc32": _crc32(array)}
                for name, array in arrays.items()
            },
        }
        metadata = {"content": content, "crc32": _crc32_of_json(content)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(metadata)
        )
        metrics = None if metric is None else {self._best: metric}
        with writing(self.folder / str(step)):
            self._manager.save(step, args=items, metrics=metrics, force=True)
        if replaces:
            self.wait()
            self._first(lambda: _remove(unevaluated))

    def restore_latest(self, state: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None where there is no checkpoint at all.

        `state` gives structure, shapes, dtypes and shardings (arrays or ShapeDtypeStructs). A
        damaged checkpoint is named in one line on standard error and the one before it is taken;
        once that is read, the damaged one is moved aside (`checkpoints/damaged-STEP`). Raises
        UserError for a checkpoint of another model or other options, for parameters that are
        missing, left over or misshapen (all before any array is read), and where every checkpoint
        is damaged, which then stay as they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps:
            restored, problem = None, "another process can't read it"
            try:
                restored = self._read(step, state)
            except _Damaged as error:
                problem = str(error)
            # What one process can't read, none takes.
            if not _any_process(restored is None):
                self._move_aside(damaged)
                return restored
            damaged.append(step)
            if is_first():
                _report_damage(self.folder / str(step), problem)
        if steps:
            raise UserError(
                f"{self.folder}: each of its {len(steps)} checkpoints is damaged; train in a new"
                " folder, or remove this one to start anew"
            )
        return None

    def _read(self, step: int, state: Any) -> Restored:
        content = _read_metadata(self._manager, step)
        self._refuse_another_model(step, content)
        self._refuse_other_data(step, content)
        _refuse_other_arrays(self.folder / str(step), content["arrays"], _flatten(state))
        arrays = _read_arrays(self._manager, step, content["arrays"], _flatten(state))
        evaluated = content.get("evaluated", True)  # older checkpoints don't say
        return Restored(step, _unflatten(arrays, state), content["interval"], evaluated)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint that is written completely, or None."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until everything begun is on the disk.

        Raises UserError where it could not be written.
        """
        with writing(self.folder):
            self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends; after an error in one of several processes it waits for nothing, as the others may
        never come to where it would meet them.
        """
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits as `wait` does, and ends."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _first(self, change: Callable[[], object]) -> None:
        """Lets the first process change the folder, and the others wait for it."""
        multihost_utils.sync_global_devices("the folder of checkpoints is about to change")
        if is_first():
            change()
        multihost_utils.sync_global_devices("the folder of checkpoints has changed")

    def _refuse_another_model(self, step: int, content: Mapping[str, Any]) -> None:
        ours = self._description.to_json()
        where = self.folder / str(step)
        if content["model_name"] != ours["model_name"]:
            raise UserError(
                f"{where}: the checkpoint is of model {content['model_name']}, not"
                f" {ours['model_name']}; train in another folder"
            )
        theirs, options = (
            _complete(ours["model_name"], each["model_options"]) for each in (content, ours)
        )
        changed = [
            f"{name}={theirs.get(name)!r} (now {options.get(name)!r})"
            for name in sorted({*theirs, *options})
            if theirs.get(name) != options.get(name)
        ]
        if changed:
            raise UserError(
                f"{where}: the checkpoint's {ours['model_name']} has other options:"
                f" {', '.join(changed)}; train in another folder"
            )

    def _refuse_other_data(self, step: int, content: Mapping[str, Any]) -> None:
        """Refuses to resume with another data set under the same name; older checkpoints don't say
        what they were trained on.
        """
        ours, theirs = self._description.to_json()["data"], content.get("data")
        if not ours or not theirs or ours == theirs:
            return
        differs = next((name for name in theirs if theirs[name] != ours.get(name)), "fingerprint")
        raise UserError(
            f"{self.folder / str(step)}: the run was trained on other data under this name:"
            f" {differs} {_shortened(theirs[differs])}, now {_shortened(ours.get(differs))}; give"
            " the data of the run (data.dir), or train in another folder"
        )

    def _move_aside(self, steps: list[int]) -> None:
        def move() -> None:
            for step in steps:
                _move_aside(self.folder / str(step))

        if steps:
            self._first(move)
            self._manager.reload()


def _shortened(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _complete(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options with those that an older checkpoint lacks, at their defaults."""
    if name not in list_models():
        return dict(options)
    known = {option: value for option, value in options.items() if option in option_defaults(name)}
    return {**model_options(create_model(name, **known)), **options}


def _tidy(folder: Path) -> None:
    """Names what Orbax is about to remove, moves aside the checkpoints whose metrics would stop it
    from opening the folder, and settles a replacement that was cut short.
    """
    storage_of(folder).make(folder)
    for path in folder.glob("unevaluated-*"):
        replaced = folder / path.name.removeprefix("unevaluated-")
        if _is_finished(replaced):
            _remove(path)
        else:
            _rename(path, replaced)
    for path in _unfinished(folder):
        print(
            f"googlenet_jax: {path} is a checkpoint that was never finished; it is removed, the one"
            " before it counts",
            file=sys.stderr,
        )
    for checkpoint, error in _with_damaged_metrics(folder):
        _report_damage(checkpoint, error)
        _move_aside(checkpoint)


def _folder(workdir: Path) -> Path:
    return storage_of(workdir).absolute(workdir) / FOLDER


def _unfinished(folder: Path) -> list[Path]:
    """What a save that was cut short has left: a folder under another name, where a file system
    renames; elsewhere one without the object that Orbax writes last.
    """
    return sorted(
        path
        for path in folder.glob("*")
        if TEMPORARY in path.name or (path.name.isdigit() and not _is_finished(path))
    )


def _is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint of this name counts."""
    return storage_of(checkpoint).is_whole(checkpoint, COMMITTED)


def _rename(checkpoint: Path, target: Path) -> None:
    storage_of(checkpoint).rename(checkpoint, target, COMMITTED)


def _remove(checkpoint: Path) -> None:
    storage_of(checkpoint).remove(checkpoint, COMMITTED)


def _with_damaged_metrics(folder: Path) -> list[tuple[Path, _Damaged]]:
    """The checkpoints whose metrics can't be read: Orbax reads all as it opens the folder."""
    found = []
    for path in sorted(folder.glob("[0-9]*/metrics/metrics")):
        try:
            _metric(json.loads(path.read_text()))
        except (ValueError, AttributeError) as error:
            what = f"its metrics can't be read: {_first_line(error)}"
            found.append((path.parent.parent, _Damaged(what)))
    return found


def _move_aside(checkpoint: Path) -> None:
    suffixes = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    places = (checkpoint.with_name(f"damaged-{checkpoint.name}{suffix}") for suffix in suffixes)
    _rename(checkpoint, next(place for place in places if not place.exists()))


def _any_process(flag: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _report_damage(checkpoint: Path, error: _Damaged | str) -> None:
    print(
        f"googlenet_jax: checkpoint {checkpoint} is damaged ({error}); trying the one before it",
        file=sys.stderr,
    )


def read_run(
    workdir: str | Path, *, weights: str | None = None, step: int | None = None
) -> TrainedModel:
    """Reads a run's weights for evaluation, prediction or conversion; changes nothing in the
    folder, which may belong to a run under way.

    `weights` is "raw" or "ema", None for "ema" where the run has it; `step` is one of the
    checkpoints' steps, None for the newest. Arrays come to the default device. A damaged newest
    checkpoint is reported on standard error and the one before it is taken. Raises UserError where
    there is no checkpoint, none of that step, none that is whole, or no average although "ema" was
    asked for.
    """
    folder = _folder(run_folder(workdir))
    with reaching(folder):
        if not folder.is_dir():
            raise UserError(
                f"{workdir}: no folder {FOLDER!r} in it; give the --workdir of a run that train.py"
                " has begun"
            )
        return _read_run(folder, weights, step)


def _read_run(folder: Path, weights: str | None, step: int | None) -> TrainedModel:
    while True:
        found = _steps(folder)
        try:
            read, damaged = _read_newest(folder, weights, step)
        except (UserError, OSError, ValueError):
            if _is_as_it_was(folder, found):
                raise
            continue
        if not damaged or _is_as_it_was(folder, found):
            for number, error in damaged.items():
                _report_damage(folder / str(number), error)
            return read


def _steps(folder: Path) -> set[str]:
    """The names of the checkpoints that are in the folder now."""
    return {path.name for path in folder.iterdir() if path.name.isdigit()}


def _is_as_it_was(folder: Path, steps: set[str]) -> bool:
    """Whether what could not be read is damaged: a run under way deletes and adds checkpoints."""
    time.sleep(0.2)  # a deletion under way has ended then
    return _steps(folder) == steps


def _read_newest(
    folder: Path, weights: str | None, step: int | None
) -> tuple[TrainedModel, dict[int, _Damaged]]:
    """`read_run` on what is in the folder now, and the newer checkpoints that are damaged."""
    damaged: dict[int, _Damaged] = {}
    for checkpoint, error in _with_damaged_metrics(folder):
        raise UserError(
            f"{checkpoint}: the checkpoint is damaged ({error}); move this folder elsewhere, or"
            " resume the run, which does"
        )
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(
        folder, options=options, item_names=("state", "metadata")
    ) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        if step is not None and step not in steps:
            raise UserError(
                f"{folder}: no checkpoint of step {step}; there are"
                f" {', '.join(map(str, reversed(steps))) or 'none'}"
            )
        for candidate in steps if step is None else [step]:
            try:
                return _read_weights(manager, candidate, weights), damaged
            except _Damaged as error:
                if step is not None:
                    raise UserError(
                        f"{folder / str(step)}: the checkpoint is damaged: {error}"
                    ) from error
                damaged[candidate] = error
    raise UserError(
        f"{folder}: no {'whole ' if steps else ''}checkpoint in it{'' if steps else ' yet'}"
    )


def _read_weights(manager: ocp.CheckpointManager, step: int, weights: str | None) -> TrainedModel:
    content = _read_metadata(manager, step)
    has_average = any(name.startswith("ema/") for name in content["arrays"])
    if weights == "ema" and not has_average:
        raise UserError(
            f"{manager.directory}/{step}: the run kept no average of its weights; use weights 'raw'"
        )
    weights = weights or ("ema" if has_average else "raw")
    about = RunDescription.from_json(content)
    prefix = "ema/" if weights == "ema" else ""
    part = f"{about.part}/" if about.part else ""
    starts = tuple(f"{prefix}{kind}/{part}" for kind in ("params", "batch_stats"))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(
            tuple(array["shape"]), np.dtype(array["dtype"]), sharding=sharding
        )
        for name, array in content["arrays"].items()
        if name.startswith(starts)
    }
    arrays = _read_arrays(manager, step, content["arrays"], targets)
    named = {
        name.removeprefix(prefix).replace(f"/{part}", "/", 1): array
        for name, array in arrays.items()
    }
    try:
        model = create_model(about.model_name, **about.model_options)
    except UserError as error:
        raise UserError(
            f"{manager.directory.parent}: {error}; a network of your own has to be registered first"
            " (--import MODULE)"
        ) from error
    return TrainedModel(
        model=model,
        variables=unflatten_dict(named, sep="/"),
        preprocessing=Preprocessing.from_dict(about.preprocessing) if about.preprocessing else None,
        class_names=about.class_names or None,
        source=str(manager.directory.parent),
        config=about.config,
        step=step,
        weights=weights,
        data=about.data,
    )


def _read_metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The metadata's content, once its own checksum has been found right.

    Raises _Damaged, and UserError for an unknown format version.
    """
    try:
        metadata = manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        ).metadata
    except Exception as error:  # whatever Orbax, JSON or the file system makes of damaged files
        _refuse_if_no_damage(manager, step, error)
        raise _Damaged(f"its metadata can't be read: {_first_line(error)}") from error
    content = metadata.get("content") if isinstance(metadata, dict) else None
    if not isinstance(content, dict) or metadata.get("crc32") != _crc32_of_json(content):
        raise _Damaged("its metadata does not have the checksum it was written with")
    if content["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{manager.directory}/{step}: checkpoint format {content['format_version']}, this"
            f" googlenet_jax reads {FORMAT_VERSION}"
        )
    return content


def _read_arrays(
    manager: ocp.CheckpointManager, step: int, stored: Mapping[str, Any], targets: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays named in `targets`, with their shardings.

    Raises _Damaged where one can't be read or its checksum is wrong.
    """
    abstract = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in targets.items()
    }
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    try:
        arrays = manager.restore(step, args=ocp.args.Composite(state=arguments)).state
    except Exception as error:  # Orbax and TensorStore raise nearly anything for damaged files
        _refuse_if_no_damage(manager, step, error)
        raise _Damaged(f"its arrays can't be read: {_first_line(error)}") from error
    for name, array in arrays.items():
        if _crc32(array) != stored[name]["crc32"]:
            raise _Damaged(f"{name} does not have the checksum it was written with")
    return arrays


def _refuse_if_no_damage(manager: ocp.CheckpointManager, step: int, error: Exception) -> None:
    """Raises what was not the checkpoint's fault: UserError, or what a store's client has raised,
    as it is.
    """
    if storage_of(manager.directory).refusal(error):
        raise error
    outside = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Out of memory")
    if isinstance(error, PermissionError | MemoryError) or any(
        words in str(error) for words in outside
    ):
        raise UserError(
            f"{manager.directory}/{step}: can't be read: {_first_line(error)}; free memory or mend"
            " the permissions"
        ) from error


def _refuse_other_arrays(
    where: Path, stored: Mapping[str, Any], targets: Mapping[str, Any]
) -> None:
    """Raises UserError for the first array that is missing in the checkpoint, left over there, or
    of another shape or dtype.
    """
    advice = "it fits another version of the model or of the optimizer; train in another folder"
    for name, target in targets.items():
        if name not in stored:
            raise UserError(f"{where}: {name} is missing in the checkpoint; {advice}")
        expected = _shape_and_dtype(target)
        found = {key: stored[name][key] for key in ("shape", "dtype")}
        if expected != found:
            raise UserError(
                f"{where}: {name} is {found['dtype']} {found['shape']}, expected"
                f" {expected['dtype']} {expected['shape']}; {advice}"
            )
    for name in stored:
        if name not in targets:
            raise UserError(
                f"{where}: {name} is in the checkpoint, but not in this run's state; {advice}"
            )


def _flatten(state: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _unflatten(arrays: Mapping[str, Any], state: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(state), [arrays[name] for name in _flatten(state)])


def _shape_and_dtype(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": np.dtype(array.dtype).name}


def _crc32(array: jax.Array) -> int:
    if not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)  # its parts lie elsewhere too
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _crc32_of_json(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _metric(metrics: Mapping[str, float]) -> float:
    """The one value of a checkpoint's metrics, whatever its name."""
    (value,) = metrics.values()
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
