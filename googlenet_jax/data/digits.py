"""The data set that needs no network: scikit-learn's bundled handwritten digits, written as a TFDS
data set."""

import contextlib
import errno
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from googlenet_jax.errors import UserError


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 real 8×8 greyscale images of handwritten digits, 1,437 to train and 360 to test.

    The split is stratified by class and fixed. scikit-learn's grey values 0–16 are scaled to 0–255.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, and TFDS's search for checksums needs a package that it doesn't
    # install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The test part of UCI's optical recognition of handwritten digits, "
                "as scikit-learn bundles it."
            ),
            homepage=(
                "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
            ),
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn.datasets import (
            load_digits,
        )  # slow to import, and used once in a data folder's life
        from sklearn.model_selection import train_test_split

        del dl_manager  # nothing to download
        digits = load_digits()
        # RandomState's stream, which this function draws from, is frozen: the split is the same in
        # every version.
        train, test = train_test_split(
            np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
        )
        return {
            name: self._generate_examples(digits, sorted(split.tolist()))
            for name, split in (("train", train), ("test", test))
        }

    def _generate_examples(
        self, digits: Any, positions: list[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for position in positions:
            image = np.rint(digits.images[position] * (255 / 16)).astype(np.uint8)
            # Encoded here, because TFDS would need TensorFlow to encode an array.
            png = cv2.imencode(".png", image)[1].tobytes()
            yield position, {"image": png, "label": int(digits.target[position])}


def prepare_digits(data_dir: Path) -> None:
    """Writes the data set into `data_dir`/digits unless it is there, as `write_once` does."""
    write_once(Digits, data_dir)


def write_once(builder: type[tfds.core.GeneratorBasedBuilder], data_dir: Path) -> None:
    """Writes a data set that needs no download into `data_dir`/NAME unless it is there.

    Atomic, and safe if several processes do so at once.

    Raises:
        UserError: if the folder can't be written.
    """
    name = builder.name
    target = data_dir / name / str(builder.VERSION)
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written whole beside its place and renamed into it; what TFDS leaves besides the data set
        # goes with the folder.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as folder:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                builder(data_dir=folder, file_format="array_record").download_and_prepare()
            _move(Path(folder) / name / str(builder.VERSION), target)
    except OSError as error:
        raise UserError(
            f"data_dir: can't write the data set {name} into {data_dir} ({error.strerror}); name "
            "another folder"
        ) from error


def _move(written: Path, target: Path) -> None:
    try:
        written.rename(target)
    except OSError as error:
        if error.errno not in (
            errno.ENOTEMPTY,
            errno.EEXIST,
        ):  # these say that another process was first; its content is the same
            raise
