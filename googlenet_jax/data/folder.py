"""A folder of images by class, written as a TFDS data set without TensorFlow: the files' bytes go
in as they are."""

import contextlib
import dataclasses
import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from googlenet_jax.data.decoding import exif_orientation
from googlenet_jax.data.picture_files import ENDINGS, list_pictures
from googlenet_jax.data.sources import FILE_FORMAT, FILE_NAME, ORIENTATION, check_class_names
from googlenet_jax.errors import UserError

TRAIN, VALIDATION = "train", "validation"
_VALIDATION_FOLDERS = ("val", "valid", "validation")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds: by split, (file, class) pairs in a fixed order; and what was passed
    over."""

    root: Path
    splits: dict[str, list[tuple[Path, str]]]
    class_names: tuple[str, ...]
    ignored: list[Path]


def list_folder(root: Path, validation_fraction: float = 0.1, seed: int = 0) -> Listing:
    """Lists `root`/train/CLASS/… and `root`/val/CLASS/…, or `root`/CLASS/… of which a share of each
    class is set apart.

    A file belongs to the share by a hash of the seed and its path, so that neither the order of the
    listing nor other files matter to the order in which the files of a class are chosen. Hidden
    files are passed over; files without an image's ending too, and listed.

    Args:
        root: the folder.
        validation_fraction: from 0 (no validation split) to below 1; not used where there is a val
            folder. Every class of two images or more keeps at least one to train on, and gives at
            least one unless the fraction is 0.
        seed: of the choice.

    Raises:
        UserError: if there is no such folder, no class, a class without an image, or one to
            validate that is not trained on.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: expected a folder of images by class, found "
            f"{'a file' if root.exists() else 'nothing'}"
        )
    if not 0 <= validation_fraction < 1:
        raise UserError(
            "--validation-fraction: expected a number of at least 0 and below 1, found "
            f"{validation_fraction}"
        )
    ignored: list[Path] = []
    if (root / TRAIN).is_dir():
        apart = [root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()]
        if len(apart) > 1:
            raise UserError(
                f"{root}: expected one folder to validate on, found "
                f"{' and '.join(folder.name for folder in apart)}"
            )
        splits = {TRAIN: _list_classes(root / TRAIN, ignored)}
        if apart:
            splits[VALIDATION] = _list_classes(apart[0], ignored)
    else:
        splits = _split(_list_classes(root, ignored), root, validation_fraction, seed)
    class_names = tuple(sorted({name for _, name in splits[TRAIN]}))
    check_class_names(class_names, str(root))
    strangers = sorted({name for _, name in splits.get(VALIDATION, [])} - set(class_names))
    if strangers:
        raise UserError(
            f"{root}: expected only classes to validate that stand in train too, found "
            f"{', '.join(strangers[:5])}"
        )
    return Listing(root, splits, class_names, ignored)


def _list_classes(folder: Path, ignored: list[Path]) -> list[tuple[Path, str]]:
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise UserError(
            f"{folder}: expected a folder for each class with images in it, found no folder"
        )
    ignored.extend(
        sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        )
    )
    listed = []
    for path in classes:
        images, others = list_pictures(path)
        if not images:
            raise UserError(
                f"{path}: expected images ({', '.join(ENDINGS)}), found none; add some or remove "
                "the folder"
            )
        ignored.extend(others)
        listed += [(file, path.name) for file in images]
    return listed


def _split(
    files: list[tuple[Path, str]], root: Path, fraction: float, seed: int
) -> dict[str, list[tuple[Path, str]]]:
    if fraction == 0:
        return {TRAIN: files}
    by_class = defaultdict(list)
    for file, name in files:
        by_class[name].append(file)
    chosen: set[Path] = set()
    for members in by_class.values():
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        chosen.update(
            sorted(members, key=lambda file: _hash(f"{seed}:{file.relative_to(root).as_posix()}"))[
                :count
            ]
        )
    if not chosen:
        raise UserError(
            f"{root}: expected a class of two images or more to set some apart, found none; pass "
            "--validation-fraction 0"
        )
    splits = {
        TRAIN: [pair for pair in files if pair[0] not in chosen],
        VALIDATION: [pair for pair in files if pair[0] in chosen],
    }
    return splits


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


class Listed(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A set of what a listing of a folder holds, by split."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, and TFDS's search for checksums needs a package that it doesn't
    # install.
    url_infos = None

    def __init__(self, listing: Any, **options: Any) -> None:
        self._listing = listing
        super().__init__(**options)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {
            split: self._generate_examples(listed) for split, listed in self._listing.splits.items()
        }


def check_set_name(name: str) -> None:
    """Raises UserError where a set made of a folder can't have that name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("digits", "digit_scenes"):
        raise UserError(
            f"--name: expected small letters, digits and _ (and none that is taken), found {name!r}"
        )


class Folder(Listed, skip_registration=True):  # type: ignore[call-arg]
    """The images of a `Listing`; each example holds its file's bytes, path and EXIF orientation,
    and its class."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images from a folder, by class.",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=self._listing.class_names),
                    FILE_NAME: tfds.features.Text(),
                    ORIENTATION: tfds.features.Scalar(np.int64),
                }
            ),
        )

    def _generate_examples(
        self, files: Sequence[tuple[Path, str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for file, class_name in files:
            path = file.relative_to(self._listing.root).as_posix()
            name = path.encode(errors="surrogateescape").decode(errors="replace")
            encoded = file.read_bytes()
            of_file = {FILE_NAME: name, ORIENTATION: exif_orientation(encoded)}
            yield name, {"image": encoded, "label": class_name, **of_file}


def prepare_folder(
    root: Path, name: str, data_dir: Path, validation_fraction: float = 0.1, seed: int = 0
) -> Listing:
    """Writes the images below `root` into `data_dir`/`name`, unless the set is there: whole or not
    at all, so it can be started again.

    Args:
        root, validation_fraction, seed: as in `list_folder`.
        name: the data set's, by which configs find it.
        data_dir: where TFDS's data sets lie.

    Raises:
        UserError: as `list_folder`, or for an impossible name or what can't be read or written.
    """
    check_set_name(name)
    listing = list_folder(root, validation_fraction, seed)
    builder_class = type("Folder", (Folder,), {"name": name}, skip_registration=True)
    try:
        builder = builder_class(listing, data_dir=data_dir, file_format=FILE_FORMAT)
        _clear(data_dir / name)
        builder.download_and_prepare()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise UserError(
            f"data set {name!r}: can't write {root} into {data_dir} "
            f"({error.strerror or error}{where})"
        ) from error
    written = {split: info.num_examples for split, info in builder.info.splits.items()}
    found = {split: len(files) for split, files in listing.splits.items()}
    if written != found:
        raise UserError(
            f"data set {name!r}: {builder.data_dir} holds {written}, but {root} holds {found}; "
            "delete the former or take another --name"
        )
    return listing


def _clear(folder: Path) -> None:
    """Removes what an interrupted preparation has left: TFDS writes into a folder of this name and
    renames it when all is written."""
    for path in folder.glob("incomplete.*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
