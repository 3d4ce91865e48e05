"""A folder of images with boxes, in VOC's or COCO's form, written as a TFDS detection set.

VOC: JPEGImages/ and Annotations/ with an XML file an image, and ImageSets/Main/SPLIT.txt for the
splits. COCO: one JSON file a split, with the images anywhere below the folder.
"""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from googlenet_jax.data.decoding import BadImage, picture_size
from googlenet_jax.data.folder import Listed, check_set_name
from googlenet_jax.data.picture_files import list_pictures
from googlenet_jax.data.sources import FILE_FORMAT, check_class_names
from googlenet_jax.errors import UserError

LARGEST_XML = 10 * 2**20  # bytes of an annotation


@dataclasses.dataclass(frozen=True)
class Example:
    """An image file, its size, and its objects.

    Attributes:
      file: the image. name: the file's path below the folder.
      boxes: float64 [G, 4], (top, left, bottom, right) in pixels, inside the image, with an area.
      labels: the names of the classes; difficult, crowd: flags, one an object.
      areas: float64 [G], of the objects' outlines in pixels; negative where not known.
    """

    file: Path
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: tuple[str, ...]
    difficult: tuple[bool, ...]
    crowd: tuple[bool, ...]
    areas: np.ndarray


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      splits: the examples of each; class_names: in the order of the labels.
      dropped: how many boxes lay outside their image or had no area.
      without_boxes: how many images had none, which are kept: all of them is background.
    """

    splits: dict[str, list[Example]]
    class_names: tuple[str, ...]
    dropped: int
    without_boxes: int


def list_detection_folder(root: Path) -> Listing:
    """Reads the annotations of a folder, in VOC's form where it has a folder Annotations.

    Raises:
      UserError: naming the file, if there is nothing of either form, an annotation is broken, an
        image is missing, or a label is none of the classes.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing'}"
        )
    if (root / "Annotations").is_dir():
        return _list_voc(root)
    return _list_coco(root)


# VOC


def _list_voc(root: Path) -> Listing:
    listed = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # Files such as aeroplane_train.txt repeat a split for one class.
    files = {path.stem: path for path in listed if "_" not in path.stem}
    if files:
        splits = {name: _voc_ids(path) for name, path in files.items()}
    else:
        splits = {"train": sorted(path.stem for path in (root / "Annotations").glob("*.xml"))}
    if not any(splits.values()):
        raise UserError(f"{root}: expected XML files in Annotations, found none")
    images = {path.stem: path for path in list_pictures(root / "JPEGImages")[0]}
    given = root / "classes.txt"
    known = _class_file(given) if given.exists() else None
    dropped = 0
    examples: dict[str, list[Example]] = {}
    for split, ids in splits.items():
        examples[split] = []
        for each in ids:
            example, count = _voc_example(root, images, each, known, given)
            examples[split].append(example)
            dropped += count
    found = {label for split in examples.values() for each in split for label in each.labels}
    return _listing(root, examples, known or tuple(sorted(found)), dropped)


def _voc_ids(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _class_file(path: Path) -> tuple[str, ...]:
    names = tuple(
        line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not names or len(set(names)) != len(names):
        raise UserError(f"{path}: expected different names, one a line, found {list(names)}")
    return names


def _voc_example(
    root: Path, images: dict[str, Path], name: str, known: Sequence[str] | None, given: Path
) -> tuple[Example, int]:
    """The image of that name, and how many of its boxes were dropped."""
    if name not in images:
        raise UserError(f"{root}: expected an image {name} in JPEGImages, found none")
    path = root / "Annotations" / f"{name}.xml"
    rows = [
        (_voc_text(path, each, "name"), _voc_box(path, each), _voc_flag(each))
        for each in _voc_root(path).iter("object")
    ]
    for label, _, _ in rows:
        if known is not None and label not in known:
            raise UserError(f"{path}: expected one of the classes of {given.name}, found {label!r}")
    boxes = np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4)
    return _example(
        images[name],
        root,
        boxes,
        [label for label, _, _ in rows],
        difficult=[flag for _, _, flag in rows],
        crowd=[False] * len(rows),
        areas=[-1.0] * len(rows),
    )


def _voc_root(path: Path) -> ElementTree.Element:
    try:
        if path.stat().st_size > LARGEST_XML:
            raise UserError(f"{path}: expected an annotation, found {path.stat().st_size:,} bytes")
        text = path.read_bytes()
        if b"<!ENTITY" in text:  # which could unfold to gigabytes
            raise UserError(f"{path}: expected plain XML, found entity definitions")
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: not XML ({error}); mend the file") from error
    except OSError as error:
        raise UserError(f"{path}: can't read the annotation: {error.strerror}") from error


def _voc_text(path: Path, element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise UserError(f"{path}: expected <{name}> in each <{element.tag}>, found none")
    return text


def _voc_box(path: Path, element: ElementTree.Element) -> tuple[float, ...]:
    box = element.find("bndbox")
    if box is None:
        raise UserError(f"{path}: expected <bndbox> in each <object>, found none")
    try:
        left, top, right, bottom = (
            float(_voc_text(path, box, key)) for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        raise UserError(f"{path}: expected numbers in <bndbox>: {error}") from error
    # VOC counts pixels from 1, and its last one lies inside the box.
    return top - 1, left - 1, bottom, right


def _voc_flag(element: ElementTree.Element) -> bool:
    return (element.findtext("difficult") or "0").strip() == "1"


# COCO


def _list_coco(root: Path) -> Listing:
    files = sorted(path for path in [*root.glob("*.json"), *root.glob("annotations/*.json")])
    if not files:
        raise UserError(
            f"{root}: expected VOC's Annotations/*.xml, or COCO's *.json there or in annotations/, "
            "found neither"
        )
    by_name: dict[str, list[Path]] = {}
    for path in list_pictures(root)[0]:
        by_name.setdefault(path.name, []).append(path)
    examples: dict[str, list[Example]] = {}
    names: tuple[str, ...] | None = None
    dropped = 0
    for path in files:
        split = re.sub(r"\W", "_", path.stem.removeprefix("instances_"))
        own, found, count = _coco_split(root, path, by_name)
        if names is not None and own != names:
            raise UserError(f"{path}: expected the categories of {files[0].name}, found others")
        names, examples[split] = own, found
        dropped += count
    return _listing(root, examples, names or (), dropped)


def _coco_split(
    root: Path, path: Path, by_name: dict[str, list[Path]]
) -> tuple[tuple[str, ...], list[Example], int]:
    content = _coco_content(path)
    try:
        categories = {each["id"]: str(each["name"]) for each in content["categories"]}
        objects: dict[Any, list[Any]] = {each["id"]: [] for each in content["images"]}
        files = {each["id"]: str(each["file_name"]) for each in content["images"]}
        for each in content["annotations"]:
            objects[each["image_id"]].append(_coco_object(path, each, categories))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not COCO's form: {type(error).__name__}: {error}") from error
    examples, dropped = [], 0
    for image, rows in objects.items():
        file = _coco_file(root, path, files[image], by_name)
        boxes = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
        example, count = _example(
            file,
            root,
            boxes,
            [row[1] for row in rows],
            difficult=[False] * len(rows),
            crowd=[row[2] for row in rows],
            areas=[row[3] for row in rows],
        )
        examples.append(example)
        dropped += count
    return tuple(categories[key] for key in sorted(categories)), examples, dropped


def _coco_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); mend or remove it") from error
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise UserError(f"{path}: expected lists images, categories and annotations, as COCO's")
    return content


def _coco_object(
    path: Path, annotation: dict[str, Any], categories: dict[Any, str]
) -> tuple[tuple[float, ...], str, bool, float]:
    """An annotation's box, class, whether it is a crowd, and its outline's area."""
    label = annotation["category_id"]
    if label not in categories:
        raise UserError(
            f"{path}: annotation {annotation.get('id')}: expected a category_id of its categories, "
            f"found {label!r}"
        )
    box = annotation["bbox"]
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(x, int | float) for x in box)
    ):
        raise UserError(
            f"{path}: annotation {annotation.get('id')}: expected a bbox of x, y, width and "
            f"height, found {box!r}"
        )
    x, y, width, height = box
    area = annotation.get("area", -1)
    if not isinstance(area, int | float):
        raise UserError(
            f"{path}: annotation {annotation.get('id')}: expected a number as area, found {area!r}"
        )
    crowd = bool(annotation.get("iscrowd", 0))
    return (y, x, y + height, x + width), categories[label], crowd, float(area)


def _coco_file(root: Path, path: Path, name: str, by_name: dict[str, list[Path]]) -> Path:
    """The image that COCO names, which may lie in another folder than it says."""
    found = [file for file in by_name.get(Path(name).name, []) if file.as_posix().endswith(name)]
    candidates = found or by_name.get(Path(name).name, [])
    if len(candidates) > 1:  # the one in a folder of the split's name, as in val2017
        near = [file for file in candidates if file.parent.name in path.stem]
        candidates = near if len(near) == 1 else candidates
    if len(candidates) != 1:
        what = "none" if not candidates else f"{len(candidates)}"
        raise UserError(f"{path}: expected one image {name!r} below {root}, found {what}")
    return candidates[0]


# Both


def _example(
    file: Path,
    root: Path,
    boxes: np.ndarray,
    labels: Sequence[str],
    difficult: Sequence[bool],
    crowd: Sequence[bool],
    areas: Sequence[float],
) -> tuple[Example, int]:
    """An example with the boxes that have an area inside the image, and how many have none."""
    try:
        height, width = picture_size(file.read_bytes())
    except (OSError, BadImage) as error:
        raise UserError(f"{file}: {error}") from error
    inside = np.clip(boxes, 0, [height, width, height, width])
    good = np.isfinite(boxes).all(axis=1) & (inside[:, 2:] > inside[:, :2]).all(axis=1)
    kept = np.flatnonzero(good).tolist()
    example = Example(
        file,
        file.relative_to(root).as_posix(),
        (height, width),
        inside[good],
        tuple(labels[i] for i in kept),
        tuple(difficult[i] for i in kept),
        tuple(crowd[i] for i in kept),
        np.array(areas, np.float64)[kept],
    )
    return example, len(boxes) - len(kept)


def _listing(
    root: Path, examples: dict[str, list[Example]], names: tuple[str, ...], dropped: int
) -> Listing:
    splits = {name: each for name, each in examples.items() if each}
    if not splits or not names:
        raise UserError(
            f"{root}: expected images with boxes, found {'no class' if splits else 'none'}"
        )
    check_class_names(names, str(root))
    empty = sum(not each.labels for split in splits.values() for each in split)
    return Listing(splits, names, dropped, empty)


class DetectionFolder(Listed, skip_registration=True):  # type: ignore[call-arg]
    """The images of a `Listing`: the files' bytes as they are, with their boxes and flags."""

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list(self._listing.class_names)),
            "is_difficult": np.bool_,
            "is_crowd": np.bool_,
            "area": np.float32,
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "file_name": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with boxes from a folder.",
            features=tfds.features.FeaturesDict(features),
        )

    def _generate_examples(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for each in examples:
            height, width = each.size
            shares = each.boxes / np.array([height, width, height, width])
            flags = (each.difficult, each.crowd, each.areas.tolist())
            rows = zip(shares.tolist(), each.labels, *flags, strict=True)
            objects = [
                {
                    "bbox": tfds.features.BBox(*(min(1.0, x) for x in box)),
                    "label": label,
                    "is_difficult": difficult,
                    "is_crowd": crowd,
                    "area": area,
                }
                for box, label, difficult, crowd, area in rows
            ]
            image = each.file.read_bytes()
            yield each.name, {"image": image, "file_name": each.name, "objects": objects}


def prepare_detection_folder(root: Path, name: str, data_dir: Path) -> Listing:
    """Writes a folder of images with boxes into `data_dir`/`name`, unless that set is there.

    Raises:
      UserError: as `list_detection_folder`, or for an impossible name or what can't be written.
    """
    check_set_name(name)
    listing = list_detection_folder(root)
    kind = type("NamedFolder", (DetectionFolder,), {"name": name}, skip_registration=True)
    try:
        kind(listing, data_dir=data_dir, file_format=FILE_FORMAT).download_and_prepare()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"data set {name!r}: can't write it into {data_dir} ({reason})") from error
    return listing
