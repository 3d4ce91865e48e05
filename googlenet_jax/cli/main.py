"""The command `googlenet-jax`: reads the arguments, runs one subcommand, turns what went wrong into
one line and an exit status.

A subcommand is a file beside this one with `add_parser(subparsers)` and `run(args) -> int`. The
files import what is slow (JAX, the data sets) inside `run`, so that `--help` answers at once.
"""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import shtab

from googlenet_jax import __version__
from googlenet_jax.cli.parser import FIELD, Parser
from googlenet_jax.cli.streams import Output, Unbreakable, open_streams
from googlenet_jax.errors import UserError, one_line

# Subcommand → an example of it.
EXAMPLES = {
    "train": "googlenet-jax train --config=digits --workdir=runs/digits --config.batch_size=64",
    "summary": "googlenet-jax summary googlenet --compare googlenet_bn",
    "prepare": "googlenet-jax prepare folder photos --name pets",
    "evaluate": "googlenet-jax evaluate --weights runs/digits --output report",
    "predict": "googlenet-jax predict --weights runs/digits photos/*.jpg",
    "explain": (
        "googlenet-jax explain --weights runs/digits photos/*.jpg --method gradcam,occlusion"
    ),
    "convert": (
        "googlenet-jax convert googlenet.pth googlenet.safetensors --model googlenet_torchvision"
    ),
    "plot": "googlenet-jax plot runs/a runs/b --output both.png",
    "verify": "googlenet-jax verify googlenet --against mine.py:MyGoogLeNet",
    "bench": "googlenet-jax bench train googlenet_bn --batch-size 32 --peer torch",
    "export": "googlenet-jax export googlenet_bn --weights runs/digits",
    "proposals": "googlenet-jax proposals digit_scenes --split test",
    "detect": "googlenet-jax detect --weights runs/scenes photo.jpg --output found",
    "compile": "googlenet-jax compile --config=imagenet_googlenet_bn --topology=v5e:4x4",
    "fid": "googlenet-jax fid real generated --metrics fid,kid",
    "features": "googlenet-jax features photos --model inception_v3_fid --output photos.npz",
    "sweep": (
        "googlenet-jax sweep digits --workdir runs/rates --grid "
        "schedule.learning_rate=0.05,0.1 --seeds 0,1,2"
    ),
    "table": "googlenet-jax table runs/rates --format latex",
    "probe": "googlenet-jax probe pets --weights inception_v3_torchvision --split validation",
}
SUBCOMMANDS = {name: importlib.import_module(f"googlenet_jax.cli.{name}") for name in EXAMPLES}
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; what all subcommands take is taken before and after the
    subcommand.
    """
    parser = Parser(
        prog="googlenet-jax",
        description="GoogLeNet and the Inception family in JAX/Flax.",
        epilog="`googlenet-jax SUBCOMMAND --help` says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"googlenet-jax {__version__}")
    parser.set_defaults(takes_fields=False)
    shtab.add_argument_to(
        parser,
        ["--print-completion"],
        help=(
            "print the shell's completion of this command: "
            'eval "$(googlenet-jax --print-completion bash)"'
        ),
    )
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, module in SUBCOMMANDS.items():
        module.add_parser(subparsers)
        added = subparsers.choices[name]
        added.epilog = " ".join(filter(None, [added.epilog, f"Example: {EXAMPLES[name]}"]))
    for each in (parser, *subparsers.choices.values()):
        # SUPPRESS: where it is absent after the subcommand, what stood before it holds.
        default = False if each is parser else argparse.SUPPRESS
        each.add_argument(
            "--debug",
            action="store_true",
            default=default,
            help="show the traceback of what goes wrong",
        )
        each.set_defaults(parser=each)
        each.add_argument(
            "--verbose",
            action="store_true",
            default=default,
            help="say more: what was set for speed, and how to turn it off",
        )
        each.add_argument(
            "--import",
            action="append",
            dest="imports_before" if each is parser else "imports",
            default=[],
            metavar="MODULE",
            help="first import a module of yours, which registers networks, losses, …; repeatable",
        )
    return parser


def _strange(args: argparse.Namespace, rest: Sequence[str]) -> str:
    """What is said of arguments that the subcommand does not take."""
    name = rest[0].split("=")[0]
    if args.takes_fields and name.startswith("--"):
        wanted = name[2:].replace("-", "_")
        fields = [
            f for f in SUBCOMMANDS["train"].field_names() if f == wanted or f.endswith(f".{wanted}")
        ]
        if fields:
            return f"there is no {name} (did you mean '--config.{fields[0]}'?)"
    known = args.parser.unknown(rest)
    return known or f"unrecognized arguments: {' '.join(rest)}"


def import_registrations(modules: Sequence[str]) -> None:
    """Imports a user's modules, also from the current folder.

    Raises UserError for one that can't be imported.
    """
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except UserError:
            raise
        except Exception as error:
            text = one_line(error)
            raise UserError(
                f"--import: can't import {module}: {type(error).__name__}: {text}"
            ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 (said in one line on standard error), 130
    or 141.

    Raises SystemExit(2) for wrong usage, as argparse does.
    """
    open_streams()
    streams = Output(sys.stdout), Unbreakable(sys.stderr)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    args.fields = rest
    if rest and not (args.takes_fields and FIELD.match(rest[0])):
        args.parser.error(_strange(args, rest))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    # Orbax warns of what is meant, that a run's folder is only read, and prints tracebacks of what
    # it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Pillow logs what it says in exceptions too.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    logging.getLogger("googlenet_jax").setLevel(logging.INFO if args.verbose else logging.WARNING)
    try:
        import_registrations([*args.imports_before, *args.imports])
        status = SUBCOMMANDS[args.subcommand].run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if args.subcommand != "train":  # which has said more
            print("\ngooglenet-jax: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        else:
            print(f"googlenet-jax: {_one_line(error)}", file=sys.stderr)
        _leave_others()
        return 1


def _leave_others() -> None:
    """Ends at once a process of several that has failed: JAX would wait at exit for the others."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _one_line(error: Exception) -> str:
    text = one_line(error)
    return (
        text
        if isinstance(error, UserError)
        else f"unexpected {type(error).__name__}: {text} (--debug shows where)"
    )
