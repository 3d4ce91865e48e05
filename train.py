"""Trains a network: `python train.py --config=configs/NAME.py[:ARG] --workdir=DIR [--config.field=value] [--debug]`.

The same command again goes on where the run in DIR stands. What goes wrong is one line on standard error and exit status 1; wrong usage
is 2.
"""

import hashlib
import os
import platform
import re
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from googlenet_jax.errors import UserError, nearest

# New fields are let through: `validate` names the unknown ones, and a model's options need not stand in the recipe.
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="the recipe, such as configs/digits.py; NAME.py:ARG hands it an argument",
    lock_config=False,
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder: config, metrics, checkpoints and curves")
_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of what goes wrong")

WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT


def main(_: list[str]) -> int:
    """Trains; returns the exit status."""
    try:
        from googlenet_jax.training.config import validate

        validate(_CONFIG.value)
        _prepare_jax(_CONFIG.value)
        from googlenet_jax.training.loop import train

        train(_CONFIG.value, Path(str(_WORKDIR.value)))
        return 0
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _DEBUG.value:
            traceback.print_exc()
        else:
            text = " ".join(str(error).split())
            say = text if isinstance(error, UserError) else f"unexpected {type(error).__name__}: {text} (--debug shows where)"
            print(f"train.py: {say}", file=sys.stderr)
        return 1


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flags parser, but every error is one line, with exit status 1 for what the recipe does not allow and 2 for wrong usage."""
    try:
        _check_recipe_is_there(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"{rest[1]!r} is no flag; fields of the recipe are set with --config.field=value")
        for flag in (_CONFIG, _WORKDIR):
            if not flag.value:
                raise flags.Error(f"--{flag.name} is missing; usage: train.py --config=configs/NAME.py --workdir=DIR")
        return rest
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        status, text = _explain(error)
        print(f"train.py: {text}", file=sys.stderr)
        sys.exit(status)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit status and the line for an error that came while flags were parsed and the recipe was read."""
    field = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error))
    if isinstance(error, UserError):
        return 1, str(error)
    if field and isinstance(error, flags.IllegalFlagValueError):
        fields = _fields()
        expected = f"a value such as {fields[field[1]]!r}" if field[1] in fields else "another kind of value"
        if any(name.startswith(f"{field[1]}.") for name in fields):
            expected = "one of its fields, such as --config.data.name=digits"
        return 1, f"{field[1]}: expected {expected}, found {field[2]!r}"
    if isinstance(error, flags.Error):
        return WRONG_USAGE, " ".join(str(error).split())
    return 1, f"--config: the recipe does not load: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"


def _check_recipe_is_there(argv: list[str]) -> None:
    match = re.search(r"(?:^|\n)--?config[=\n]([^:\n]+)", "\n".join(argv))
    if match and not Path(match[1]).is_file():
        recipes = [str(recipe) for recipe in sorted(Path("configs").glob("*.py"))]
        raise UserError(f"--config: there is no file {match[1]!r}{nearest(match[1], recipes)}")


def _fields() -> dict[str, object]:
    from flax.traverse_util import flatten_dict

    from googlenet_jax.training.config import default_config

    return flatten_dict(default_config().to_dict(), sep=".")


def _prepare_jax(config: ConfigDict) -> None:
    """What has to be settled before JAX touches a device."""
    logging.set_verbosity(logging.ERROR)  # absl's, on which Orbax tells what it does
    if config.deterministic:
        from googlenet_jax.training.step import set_deterministic_flags

        set_deterministic_flags()
    from googlenet_jax.training.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))


def _cache_folder() -> Path:
    """Compiled code, kept apart by jaxlib's version and the CPU: code for one CPU can hold instructions that another lacks."""
    import jaxlib

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    name = hashlib.sha256(f"{jaxlib.__version__} {platform.machine()} {cpu}".encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet_jax" / f"compiled-{name}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
