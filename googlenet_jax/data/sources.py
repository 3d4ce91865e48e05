"""What the pipeline knows of data, and prepared TFDS data sets read without TensorFlow.

Data of a user's own come in by `data/examples.py`.
"""

import collections
import dataclasses
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.read_only_builder import builder_from_files
from tensorflow_datasets.proto import tf_example_pb2

from googlenet_jax.data.bucket import nearby
from googlenet_jax.data.decoding import BadImage, decode
from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.errors import UserError, nearest
from googlenet_jax.runtime.storage import data_folder, is_store, reaching

GIVEN = "given"  # the name of data that a user has handed over
FILE_FORMAT = "array_record"
FILE_NAME = "file_name"  # the feature that names an example's file, in the sets that have one
# The feature by which a picture is turned upright (EXIF's numbers), in sets made from a folder.
ORIENTATION = "exif_orientation"


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One example as it is stored: an image file's bytes, or pixels [H, W, C]; the label, or one
    for each class [K]; EXIF's orientation; and the file's name ("" where unknown)."""

    image: bytes | np.ndarray
    label: Any
    orientation: int = 1
    file_name: str = ""

    def content(self) -> bytes:
        """The file's bytes, or the pixels'."""
        image = self.image
        return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()


class Source:
    """The examples of one split, in a fixed order: `source[i]` is `{"image": [H, W, C], "label":
    int, or float [K]}`.

    A source can be sent to another process by pickle.

    Attributes:
        name: the data set's name as it was asked for.
        split: likewise, slices included.
        class_names: one a class, in the order of the labels.
        num_classes: how many classes the data set has.
        channels, dtype: of the images: uint8, uint16 or float32.
        grey: whether images have one channel.
        multi_label: whether a label says for each class whether it is there, [K].
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    channels: int = 3
    dtype: Any = np.dtype(np.uint8)
    multi_label: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def grey(self) -> bool:
        return self.channels == 1

    def __len__(self) -> int:
        raise NotImplementedError

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Returns the examples at these positions as they are stored.

        Raises:
            UserError: if the files can't be read, or naming the example, if a label is none of the
                classes.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.name} {self.split} has {len(self)} examples; there is no number {index}"
            )
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the examples at these positions, decoded; one call for a batch costs a tenth of
        one call an example.

        Raises:
            UserError: naming the example, if an image can't be decoded or a label is none of the
                classes.
        """
        return [
            self._decode(index, record)
            for index, record in zip(indices, self.records(indices), strict=True)
        ]

    def labels(self) -> np.ndarray:
        """All labels, int64 [N] or float32 [N, K]; reads what is stored, and decodes nothing."""
        parts = [
            [record.label for record in self.records(range(start, min(start + 1024, len(self))))]
            for start in range(0, len(self), 1024)
        ]
        labels = np.array([label for part in parts for label in part])
        return labels.astype(np.float32 if self.multi_label else np.int64)

    def identity(self) -> dict[str, Any]:
        """What tells this split from another under the same name: how many examples it has, its
        classes' names, and a check sum of these and of up to 64 examples, evenly spaced.
        """
        count = len(self)
        places = sorted({place * count // 64 for place in range(64)})
        crc = zlib.crc32("\n".join((*self.class_names, str(count))).encode())
        for record in self.records(places):
            label = record.label.tolist() if self.multi_label else record.label
            crc = zlib.crc32(record.content(), zlib.crc32(str(label).encode(), crc))
        return {"examples": count, "class_names": list(self.class_names), "fingerprint": crc}

    def checksum(self) -> int:
        """A check sum of all that the split holds and of its classes' names."""
        crc = zlib.crc32("\n".join(self.class_names).encode())
        for index in range(len(self)):
            (record,) = self.records([index])
            crc = zlib.crc32(np.asarray(record.label).tobytes(), crc)
            crc = zlib.crc32(record.content(), crc)
        return crc

    def describe(self, index: int, record: Record, problem: object) -> str:
        """What is wrong with an example, in one line that names it."""
        name = f" ({record.file_name})" if record.file_name else ""
        return (
            f"{self.name} {self.split}, example {index}{name}: {problem}; "
            "mend or leave out that image and prepare the data set again"
        )

    def _decode(self, index: int, record: Record) -> dict[str, Any]:
        if isinstance(record.image, np.ndarray):
            return {"image": record.image, "label": record.label}
        try:
            image = decode(record.image, grey=self.grey, orientation=record.orientation)
        except BadImage as error:
            raise UserError(self.describe(index, record, error)) from error
        return {"image": image, "label": record.label}


class Stored:
    """The serialised examples of one split of a prepared set, in a fixed order.

    Another process that it is sent to opens the files for itself.

    Attributes:
        files: the split's, whole.
        folder: of this machine, where what belongs to the set may be kept.

    Raises:
        UserError: if the split is unknown, malformed or empty, or as `bucket.nearby` does.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
        _check_split(builder, name, split)
        self._what, self._url = f"{name} {split}", builder.data_dir
        builder, self.folder = nearby(builder, name, split)
        self._folder = builder.data_dir
        self.files = [each.filename for each in builder.info.splits[split].file_instructions]
        self._records = builder.as_data_source(
            split=split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format=FILE_FORMAT,
        )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the examples at these positions.

        Raises:
            UserError: if the files can't be read.
        """
        try:
            return self._records.__getitems__(indices)
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            remedy = "delete the folder and prepare the data set again"
            if is_store(self._folder):
                remedy = "start again, and if it stays, copy the data set to the bucket again"
            elif is_store(self._url):
                remedy = "delete the folder; the next start copies it again"
            raise UserError(
                f"{self._what}: can't read the files in {self._folder} ({_one_line(error)});"
                f" {remedy}"
            ) from error


def _check_split(builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
    splits = builder.info.splits
    try:
        examples = splits[split].num_examples if isinstance(split, str) else 0
        problem = f"no examples in {split!r}"
    except (KeyError, ValueError, AssertionError) as error:
        base = split.split("[")[0]
        examples, problem = 0, _one_line(error) + ("" if base in splits else nearest(base, splits))
    if examples <= 0:
        counts = ", ".join(f"{key} ({info.num_examples} examples)" for key, info in splits.items())
        raise UserError(
            f"split {split!r} of data set {name!r}: expected one of {counts}, or slices and sums "
            "of them such as "
            f"'train[:90%]' and 'train+test', found {problem}"
        )


class PreparedSource(Source):
    """A split of a prepared data set.

    Images come out as RGB (or one channel, where the data set's image feature has one or two):
    palettes are resolved, 16 bits become their upper 8, alpha is dropped and an EXIF orientation
    ignored, as TensorFlow's and torchvision's loaders do. (Sets made from a folder hold the
    orientation as a feature of their own, and their pictures come out upright.)

    Another process that it is sent to opens the data set's files for itself.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
        features = check_features(builder.info.features, name)
        self.name = name
        self.split = split
        self.class_names = tuple(features["label"].names)
        self.channels = 1 if features["image"].shape[-1] in (1, 2) else 3
        self._stored = Stored(builder, name, split)

    def __len__(self) -> int:
        return len(self._stored)

    def records(self, indices: Sequence[int]) -> list[Record]:
        return [
            self._record(index, example)
            for index, example in zip(indices, self._stored.read(indices), strict=True)
        ]

    def checksum(self) -> int:
        """A check sum of what the split's files hold and of its classes' names; reads all of
        them.
        """
        crc = zlib.crc32("\n".join(self.class_names).encode())
        try:
            for name in self._stored.files:
                with reaching(name), epath.Path(name).open("rb") as file:
                    while chunk := file.read(1 << 20):
                        crc = zlib.crc32(chunk, crc)
        except OSError as error:
            raise UserError(
                f"{self.name} {self.split}: can't read {name} ({error.strerror or error})"
            ) from error
        return crc

    def _record(self, index: int, serialized: bytes) -> Record:
        features = tf_example_pb2.Example.FromString(serialized).features.feature
        label = features["label"].int64_list.value[0]
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{self.name} {self.split}, example {index}: expected a label from 0 to "
                f"{self.num_classes - 1}, found {label}; "
                "choose a split that has labels"
            )
        # Asking the map for a key would add it.
        orientation = features[ORIENTATION].int64_list.value[0] if ORIENTATION in features else 1
        name = (
            features[FILE_NAME].bytes_list.value[0].decode(errors="replace")
            if FILE_NAME in features
            else ""
        )
        return Record(features["image"].bytes_list.value[0], label, orientation, name)


def load_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens one split of a prepared data set; never imports TensorFlow.

    Args:
        name: a TFDS name, such as "cifar10", "food101:2.0.0" or "name/config". "digits" is written
            on first use. "huggingface:NAME_OR_FOLDER" and "tar:PATTERN" are those formats' own.
        split: such as "train", "train[:90%]" or "train+test".
        data_dir: where TFDS's data sets lie, a folder or gs://BUCKET/FOLDER (see `bucket.nearby`);
            by default the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        UserError: if the data set isn't prepared or has no image and label, or the split is
            unknown, malformed or empty.
    """
    if name == GIVEN:
        raise UserError(
            "data.name: these data were handed to gj.train, and have no name to open them by; hand "
            "them over again: gj.train(config, workdir, train=…, eval=…)"
        )
    if name.startswith(("huggingface:", "tar:")):
        from googlenet_jax.data.foreign import open_foreign

        return open_foreign(name, split)
    return PreparedSource(open_builder(name, data_dir), name, split)


def data_sets_in(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are looked for: `data_dir`, else the environment's TFDS_DATA_DIR, else
    ~/tensorflow_datasets.

    Raises:
        UserError: for a bucket that is not there or can't be reached.
    """
    return data_folder(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def write_data_sets_in(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The same for a set that is to be written.

    Raises:
        UserError: for a bucket, with what to do.
    """
    folder = data_sets_in(data_dir)
    if is_store(folder):
        raise UserError(
            "--data-dir: expected a folder of this machine, as data sets are written on a disk,"
            f" found {folder}; write it into one, and copy it: gcloud storage cp -r DIR/NAME"
            f" {folder}/"
        )
    return folder


def open_builder(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tfds.core.DatasetBuilder:
    """Finds a prepared data set by its files alone, so that neither its own code nor its version
    today matters.

    Raises:
        UserError: with the command that prepares it, if it isn't there or is in another file
            format.
    """
    folder = data_sets_in(data_dir)
    if name == "digits" and not is_store(folder):
        prepare_digits(folder)
    try:
        with reaching(folder):
            builder = builder_from_files(name, data_dir=folder)
    except (ValueError, OSError) as error:
        raise UserError(
            f"data set {name!r}: not prepared in {folder}{_how_to_prepare(name, folder)}"
        ) from error
    formats = sorted(available.value for available in builder.info.available_file_formats())
    if FILE_FORMAT not in formats:
        raise UserError(
            f"data set {name!r}: expected array_record files in {builder.data_dir}, found "
            f"{' and '.join(formats)}; "
            f"prepare it once more into another folder with: googlenet-jax prepare {name} "
            "--data-dir DIR"
        )
    return builder


def check_features(features: Any, name: str) -> Any:
    """Returns `features` if they hold what classification needs: an 8 or 16 bit `image` [H, W, C]
    and a `label` with classes.

    Raises:
        UserError: naming the feature that is missing or of another kind.
    """
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    known = features if isinstance(features, tfds.features.FeaturesDict) else {}
    for key, kind in wanted.items():
        if key not in known or not isinstance(known[key], kind):
            what = f"only {', '.join(sorted(features or ['nothing']))}"
            what = f"{key} is a {type(known[key]).__name__}" if key in known else what
            raise UserError(
                f"data set {name!r}: expected the features image (an Image) and label (a "
                f"ClassLabel), found {what}; choose another set"
            )
    image, label = features["image"], features["label"]
    if len(image.shape) != 3 or np.dtype(image.np_dtype).name not in ("uint8", "uint16"):
        raise UserError(
            f"data set {name!r}: expected images [H, W, C] of uint8 or uint16, "
            f"found {list(image.shape)} of {np.dtype(image.np_dtype).name}; choose another set"
        )
    if not label.num_classes:
        raise UserError(
            f"data set {name!r}: its label feature doesn't say how many classes there are; choose "
            "another set"
        )
    return features


def check_class_names(names: Iterable[str], where: str) -> None:
    """Raises UserError for a class whose name a set's label file can't hold, before anything is
    written.

    TFDS writes a name a line in UTF-8 and strips each line as it reads: the wrong classes would
    get names.
    """
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise UserError(f"{where}: expected different names of classes, found {name!r} twice")
        if name.splitlines() != [name] or name.strip() != name or not _is_utf_8(name):
            raise UserError(
                f"{where}: expected names of classes in UTF-8, without line breaks and without a "
                f"space at either end, found {name!r}; rename that one"
            )


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # of a file's name: bytes that are no UTF-8
        return False
    return True


def _how_to_prepare(name: str, folder: Path) -> str:
    known = [*tfds.list_builders(with_community_datasets=False), "digits"]
    base = name.split("/")[0].split(":")[0]
    if base in known and is_store(folder):
        return (
            f"; write it on a disk with: googlenet-jax prepare {name} --data-dir DIR, and copy it: "
            f"gcloud storage cp -r DIR/{base} {folder}/"
        )
    if base in known:
        return f"; prepare it with: googlenet-jax prepare {name} --data-dir {folder}"
    return f", and TFDS knows no set of that name{nearest(base, known)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("See format at")[0].split()).rstrip(". ")
