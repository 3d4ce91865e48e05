"""`googlenet-jax train`: trains as a config says, or resumes the run that is in the folder."""

import argparse
import ast
import re
from pathlib import Path
from typing import Any

from googlenet_jax.errors import UserError, nearest, one_line


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments.

    `--config.field=value` are left over by the parser, in `args.fields`.
    """
    parser = subparsers.add_parser(
        "train",
        help="train a network, or resume one",
        usage="%(prog)s --config=NAME[:ARG] --workdir=DIR [--config.field=value …]",
        allow_abbrev=False,
        epilog="--config.field=value sets a field of the config, such as --config.batch_size=64.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:ARG]",
        help="a config's name, such as digits, or its file; :ARG hands it an argument",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run's folder, or gs://BUCKET/FOLDER: config, metrics, checkpoints and curves",
    )
    parser.add_argument(
        "--profile", action="store_true", help="trace a few steps into the folder's profile/"
    )
    several = parser.add_argument_group(
        "several processes", "found by themselves on TPU pods, under SLURM and Open MPI"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached")
    several.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, metavar="K", help="which this is, from 0")
    several.add_argument(
        "--peer-timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long to wait for a process that does not come or stands still (%(default)s)",
    )
    parser.set_defaults(takes_fields=True)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0. Raises KeyboardInterrupt or SystemExit where a signal has stopped the run,
    which is saved then.
    """
    from googlenet_jax.runtime.preemption import catching_signals

    with catching_signals():  # before the slow imports
        config = read_config(args.config, args.fields)
        from googlenet_jax.runtime.process import prepare, prepare_for_several

        prepare()
        from googlenet_jax.runtime.distributed import connect
        from googlenet_jax.training.loop import train

        if args.peer_timeout < 1:
            raise UserError(
                f"--peer-timeout: expected at least 1 second, found {args.peer_timeout}"
            )
        connect(args.coordinator, args.num_processes, args.process_id, timeout=args.peer_timeout)
        prepare_for_several()
        train(config, args.workdir, peer_timeout=args.peer_timeout, profile=args.profile)
    return 0


def field_names() -> list[str]:
    """The names of a classification config's fields, such as "schedule.warmup"."""
    from flax.traverse_util import flatten_dict

    from googlenet_jax.training.config import default_config

    return sorted(flatten_dict(default_config().to_dict(), sep="."), key=len)


def config_folder() -> Path:
    """Where the package's configs lie: inside an installed package, or beside it where it runs from
    its sources.
    """
    package = Path(__file__).parents[1]
    return next(
        folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()
    )


def read_config(config: str, fields: list[str]) -> Any:
    """Reads a config and sets fields of it.

    Args:
      config: NAME or NAME:ARG; NAME is that of a config of the package, or a file's path.
      fields: "--config.field=value", or both as items of their own.
    Returns:
      The ConfigDict, not checked yet.
    Raises:
      UserError: there is no such config, it does not load, or a value is not of its field's kind.
    """
    from absl import flags
    from ml_collections import config_flags

    name, colon, argument = config.partition(":")
    path = f"{_config_path(name)}{colon}{argument}"
    values = flags.FlagValues()
    whole = [match for field in fields if (match := _OPTIONS.fullmatch(field))]
    plain = [field for field in fields if not _OPTIONS.fullmatch(field)]
    arguments = ["train", f"--config={path}", *plain]
    # New fields are let through: the check of the whole config names them, and a model's options
    # need not stand in it.
    holder = config_flags.DEFINE_config_file(
        "config",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=arguments,
    )
    try:
        rest = values(arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explain(error, config)) from error
    if len(rest) > 1:
        raise UserError(
            f"{rest[1]!r} is no field; fields of the config are set with --config.field=value"
        )
    for match in whole:
        _set_options(holder.value, match[1].split("."), match[2])
    return holder.value


# Options that config_flags can't set: all of a group, {…}, or those by the name of what they are
# of.
_OPTIONS = re.compile(
    r"--config\.((?:\w+\.)+options(?:\.\w+\.\w+(?==)|(?==\{.*\}$)))=(.*)", re.DOTALL
)


def _set_options(config: Any, path: list[str], text: str) -> None:
    from ml_collections import ConfigDict

    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    for name in path[:-1]:
        if name not in config:
            config[name] = ConfigDict(type_safe=False)
        config = config[name]
    config[path[-1]] = ConfigDict(value, type_safe=False) if isinstance(value, dict) else value


def _config_path(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    configs = {path.stem: path for path in sorted(config_folder().glob("*.py"))}
    if name in configs:
        return configs[name]
    if name.endswith(".py") or "/" in name:
        files = [*map(str, sorted(Path("configs").glob("*.py"))), *configs]
        raise UserError(f"--config: there is no file {name!r}{nearest(name, files)}")
    raise UserError(
        f"--config: there is no config {name!r}{nearest(name, configs)}: one of"
        f" {', '.join(configs)}, or a file"
    )


def _explain(error: Exception, config: str) -> str:
    """The line for an error that came while the config was read and its fields were set."""
    from absl import flags
    from flax.traverse_util import flatten_dict

    text = one_line(error)
    field = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if field and isinstance(error, flags.IllegalFlagValueError):
        fields = flatten_dict(read_config(config, []).to_dict(), sep=".")
        expected = (
            f"a value such as {fields[field[1]]!r}"
            if field[1] in fields
            else "another kind of value"
        )
        if any(name.startswith(f"{field[1]}.") for name in fields):
            expected = "one of its fields, such as --config.data.name=digits"
        return f"{field[1]}: expected {expected}, found {field[2]!r}"
    if isinstance(error, flags.Error):
        return text
    return (
        f"--config: the config does not load: {type(error).__name__}: {text} (--debug shows where)"
    )
