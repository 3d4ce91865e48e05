"""`googlenet-jax prepare`: downloads a TFDS data set and writes it in the format that training
reads."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add
from googlenet_jax.errors import UserError, nearest, one_line


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "prepare",
        help="write a data set for training: a TFDS set, or a folder of images by class",
        description="Writes a data set in the format that training reads, reads every image of it "
        "back, and leaves counts by class "
        "(counts.json) and a picture of samples (samples.png) beside it. Started again it resumes, "
        "or does nothing.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a TFDS data set's name, such as digits, cifar10, imagenet2012 or voc/2007; or: "
        "folder SRC; or, for images with boxes: detection-folder SRC",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        nargs="?",
        type=Path,
        help="after 'folder': SRC/train/CLASS/… and SRC/val/CLASS/…, or SRC/CLASS/…; after "
        "'detection-folder': VOC's JPEGImages, Annotations and ImageSets, or COCO's JSON files",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where to write (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--manual-dir",
        type=Path,
        metavar="DIR",
        help="where archives lie that TFDS can't download, such as imagenet2012's two",
    )
    parser.add_argument(
        "--name",
        dest="set_name",
        metavar="NAME",
        help="of the set made from a folder (default: the folder's own)",
    )
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.1,
        metavar="X",
        help="set apart of one folder by class (default: 0.1)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of what is set apart (default: 0)"
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prepares the data set, unless it is there already, and prints what it holds; returns 0."""
    from googlenet_jax.data import sources
    from googlenet_jax.detection.digit_scenes import prepare_digit_scenes
    from googlenet_jax.detection.sources import has_boxes

    folder = sources.write_data_sets_in(args.data_dir)
    if (args.name in ("folder", "detection-folder")) != (args.source is not None):
        raise UserError(
            "prepare: expected 'folder SRC' or 'detection-folder SRC', or the name of a TFDS data "
            "set alone"
        )
    name, ignored = args.name, list[Path]()
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints there
        if name == "folder":
            name, ignored = _prepare_folder(args, folder)
        elif name == "detection-folder":
            name = _prepare_detection_folder(args, folder)
        elif name == "digit_scenes":
            prepare_digit_scenes(folder)
        elif name != "digits":
            download(name, folder, args.manual_dir)
    builder = sources.open_builder(name, folder)
    if has_boxes(builder.info.features):
        return _print_detection_set(args, name, list(builder.info.splits))
    classes = sources.check_features(builder.info.features, name)["label"].num_classes
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    unreadable = _verify(name, folder, Path(builder.data_dir), list(splits))
    if args.json:
        facts = {
            "name": name,
            "folder": str(builder.data_dir),
            "num_classes": classes,
            "splits": splits,
        }
        print(
            json.dumps(
                {**facts, "unreadable": unreadable, "ignored": [str(path) for path in ignored]},
                indent=2,
            )
        )
        return 0
    print(f"{name}: {classes} classes, in {builder.data_dir}")
    for split, examples in splits.items():
        print(f"  {split:<12} {examples:>10,} examples")
    _print_some(
        "images can't be read; training stops at one unless data.on_bad_image is 'skip'", unreadable
    )
    _print_some("files don't end as images do and were left out", [str(path) for path in ignored])
    return 0


def _print_some(what: str, lines: list[str], count: int = 5) -> None:
    if lines:
        print(f"{len(lines)} {what}:")
        print(
            "\n".join(f"  {line}" for line in lines[:count] + (["…"] if len(lines) > count else []))
        )


def _prepare_folder(args: argparse.Namespace, folder: Path) -> tuple[str, list[Path]]:
    """Writes the set; returns its name and the files that were passed over."""
    from googlenet_jax.data.folder import prepare_folder

    source = args.source.expanduser().resolve()
    name = args.set_name or re.sub(r"[^a-z0-9]+", "_", source.name.lower()).strip("_")
    listing = prepare_folder(source, name, folder, args.validation_fraction, args.seed)
    return name, listing.ignored


def _prepare_detection_folder(args: argparse.Namespace, folder: Path) -> str:
    """Writes the set, says what was left out, and returns its name."""
    from googlenet_jax.detection.folder import prepare_detection_folder

    source = args.source.expanduser().resolve()
    name = args.set_name or re.sub(r"[^a-z0-9]+", "_", source.name.lower()).strip("_")
    listing = prepare_detection_folder(source, name, folder)
    if listing.dropped:
        print(f"{listing.dropped} boxes outside their image or without area were left out")
    if listing.without_boxes:
        print(f"{listing.without_boxes} images have no boxes: all of them is background")
    return name


def _print_detection_set(args: argparse.Namespace, name: str, splits: Sequence[str]) -> int:
    """Reads every annotation of a detection set and prints what it holds."""
    from googlenet_jax.detection.sources import load_detection_source

    sources = {split: load_detection_source(name, split, args.data_dir) for split in splits}
    counts = {
        split: {
            "images": len(source),
            "objects": sum(len(each.objects.labels) for each in source.annotations()),
        }
        for split, source in sources.items()
    }
    first = next(iter(sources.values()))
    if args.json:
        facts = {"name": name, "folder": str(first.folder), "num_classes": first.num_classes}
        print(json.dumps({**facts, "splits": counts}, indent=2))
        return 0
    print(f"{name}: {first.num_classes} classes, in {first.folder}")
    for split, count in counts.items():
        print(f"  {split:<12} {count['images']:>10,} images {count['objects']:>10,} objects")
    return 0


def _verify(name: str, folder: Path, target: Path, splits: list[str]) -> list[str]:
    """Reads every example back, unless that was done before, and writes counts and samples; returns
    what can't be read."""
    from googlenet_jax.data import inventory
    from googlenet_jax.data.sources import load_source

    counts = target / inventory.COUNTS_FILE
    if counts.exists():
        return [
            line
            for split in json.loads(counts.read_text(encoding="utf-8")).values()
            for line in split["unreadable"]
        ]
    found = {split: inventory.take_inventory(load_source(name, split, folder)) for split in splits}
    try:
        inventory.draw_samples(target / inventory.SAMPLES_FILE, next(iter(found.values())).samples)
        inventory.write_counts(counts, found)  # last: it says that all is done
    except OSError as error:
        raise UserError(
            f"data set {name!r}: can't write into {target} ({error.strerror}); mend that and start "
            "again"
        ) from error
    return [line for taken in found.values() for line in taken.unreadable]


def download(name: str, folder: Path, manual_dir: Path | None = None) -> None:
    """Downloads and writes the data set through TFDS; does nothing where that is done already.

    Args:
        name: the data set's.
        folder: where it is written.
        manual_dir: where the archives lie that TFDS can't download; None is TFDS's own place.

    Raises:
        UserError: if TFDS doesn't know the name, the set is for neither classification nor
            detection, a package is missing or the download fails.
    """
    import tensorflow_datasets as tfds

    from googlenet_jax.data.sources import FILE_FORMAT, check_features
    from googlenet_jax.detection.sources import has_boxes

    try:
        builder = tfds.builder(name, data_dir=folder, file_format=FILE_FORMAT)
        # Before gigabytes are downloaded for nothing.
        if not has_boxes(builder.info.features):
            check_features(builder.info.features, name)
        options = {} if manual_dir is None else {"manual_dir": str(manual_dir.expanduser())}
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = [*tfds.list_builders(with_community_datasets=False), "digits"]
        raise UserError(
            f"data set {name!r}: TFDS knows no set of that name{nearest(name, known)}; see "
            "tensorflow.org/datasets/catalog"
        ) from error
    except ImportError as error:
        raise UserError(f"data set {name!r}: {_missing(error)}") from error
    except OSError as error:  # the network's errors too
        raise UserError(
            f"data set {name!r}: can't download it into {folder} ({_short(error)}); check the "
            "network and the disk"
        ) from error
    # TFDS has no common class for a wrong config, a set to be fetched by hand, a failed checksum …
    except Exception as error:
        raise UserError(
            f"data set {name!r}: TFDS can't prepare it in {folder} ({_short(error)})"
        ) from error


def _missing(error: ImportError) -> str:
    package = (error.name or str(error)).split(".")[0]
    if "tensorflow" in str(error).lower() or package == "importlib_resources":
        return (
            f"TFDS needs {package} to prepare it; pip install 'googlenet-jax[prepare]' "
            "(training then needs neither)"
        )
    return f"TFDS needs the Python package {package} to prepare it; install that package with pip"


def _short(error: Exception, length: int = 400) -> str:
    text = one_line(error)
    return text if len(text) <= length else text[:length] + "…"
