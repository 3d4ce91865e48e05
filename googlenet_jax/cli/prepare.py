"""`googlenet-jax prepare`: downloads a TFDS data set and writes it in the format that training reads."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from googlenet_jax.errors import UserError, nearest


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("prepare", help="download a TFDS data set and write it for training (digits needs no network)")
    parser.add_argument("name", metavar="NAME", help="a TFDS data set's name, such as digits, cifar10 or food101")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where to write (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Prepares the data set, unless it is there already, and prints what it holds; returns 0."""
    from googlenet_jax.data import sources

    folder = args.data_dir.expanduser() if args.data_dir else sources.default_data_dir()
    if args.name != "digits":
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints there
            download(args.name, folder)
    builder = sources.open_builder(args.name, folder)
    classes = sources.check_features(builder.info.features, args.name)["label"].num_classes
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    if args.json:
        print(json.dumps({"name": args.name, "folder": str(builder.data_dir), "num_classes": classes, "splits": splits}, indent=2))
    else:
        print(f"{args.name}: {classes} classes, in {builder.data_dir}")
        for name, examples in splits.items():
            print(f"  {name:<12} {examples:>10,} examples")
    return 0


def download(name: str, folder: Path) -> None:
    """Downloads and writes the data set through TFDS; does nothing where that is done already.

    Raises:
        UserError: if TFDS doesn't know the name, the set is not for classification, a package is missing or the download fails.
    """
    import tensorflow_datasets as tfds

    from googlenet_jax.data.sources import FILE_FORMAT, check_features

    try:
        builder = tfds.builder(name, data_dir=folder, file_format=FILE_FORMAT)
        check_features(builder.info.features, name)  # before gigabytes are downloaded for nothing
        builder.download_and_prepare()
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = [*tfds.list_builders(with_community_datasets=False), "digits"]
        raise UserError(
            f"data set {name!r}: TFDS knows no set of that name{nearest(name, known)}; see tensorflow.org/datasets/catalog"
        ) from error
    except ImportError as error:
        raise UserError(f"data set {name!r}: {_missing(error)}") from error
    except OSError as error:  # the network's errors too
        raise UserError(f"data set {name!r}: can't download it into {folder} ({_short(error)}); check the network and the disk") from error
    except Exception as error:  # TFDS has no common class for a wrong config or version, a set to be fetched by hand, a failed checksum …
        raise UserError(f"data set {name!r}: TFDS can't prepare it in {folder} ({_short(error)})") from error


def _missing(error: ImportError) -> str:
    package = (error.name or str(error)).split(".")[0]
    if "tensorflow" in str(error).lower() or package == "importlib_resources":
        return f"TFDS needs {package} to prepare it; pip install 'googlenet-jax[prepare]' (training then needs neither)"
    return f"TFDS needs the Python package {package} to prepare it; install that package with pip"


def _short(error: Exception, length: int = 400) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[:length] + "…"
