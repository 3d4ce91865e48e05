"""Detections over a split as files that other programs read: COCO's JSON, and VOC's text, a class a
file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.detection.measures import Detections, Objects
from googlenet_jax.runtime.storage import write_text, writing

TRUTH, FOUND = "coco_truth.json", "coco_detections.json"


def write_detections(
    folder: Path,
    split: str,
    class_names: Sequence[str],
    names: Sequence[str],
    sizes: np.ndarray,
    truth: Sequence[Objects],
    found: Sequence[Detections],
) -> list[Path]:
    """Writes what was found in a split's images, and what is there, and returns the files.

    `coco_detections.json` is a list of results as COCO's server and `pycocotools` (`loadRes`) take
    them; `coco_truth.json` holds the images and annotations that it speaks of. VOC's files are
    `comp4_det_SPLIT_CLASS.txt`, as its development kit reads them: an image's name, the score, and
    left, top, right, bottom in pixels counted from 1. A name that no file may have gets
    underscores.

    Args:
      names: an image each, as the data set has them, such as "000012.jpg".
      sizes: their heights and widths [N, 2] in pixels.
    Raises:
      UserError: the folder can't be written.
    """
    ids = image_ids(names)
    files = {
        TRUTH: json.dumps(_coco_truth(ids, names, sizes, class_names, truth)),
        FOUND: json.dumps(_coco_found(ids, found)),
    }
    for label, name in enumerate(class_names):
        lines = _voc_lines([Path(each).stem for each in names], found, label)
        files[f"comp4_det_{_plain(split)}_{_plain(name)}.txt"] = "".join(lines)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_text(folder / file, text)
    return [folder / file for file in files]


def image_ids(names: Sequence[str]) -> list[int]:
    """COCO's number of each image: the one in its name, as in "000000000139.jpg"; where a name is
    none, or two are the same, all are counted from 1.
    """
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(names) + 1))


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def _xywh(box: Any) -> list[float]:
    top, left, bottom, right = (float(side) for side in box)
    return [left, top, right - left, bottom - top]


def _coco_truth(
    ids: Sequence[int],
    names: Sequence[str],
    sizes: np.ndarray,
    class_names: Sequence[str],
    truth: Sequence[Objects],
) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": name, "height": int(height), "width": int(width)}
        for number, name, (height, width) in zip(ids, names, sizes, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for number, each in zip(ids, truth, strict=True):
        for i, box in enumerate(each.boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would be "not matched" to pycocotools
                    "image_id": number,
                    "category_id": int(each.labels[i]) + 1,
                    "bbox": _xywh(box),
                    "area": float(each.areas[i]),
                    "iscrowd": int(each.crowd[i]),
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_found(ids: Sequence[int], found: Sequence[Detections]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": _xywh(box),
            "score": float(score),
        }
        for number, each in zip(ids, found, strict=True)
        for box, label, score in zip(each.boxes, each.labels, each.scores, strict=True)
    ]


def _voc_lines(stems: Sequence[str], found: Sequence[Detections], label: int) -> list[str]:
    lines = []
    for stem, each in zip(stems, found, strict=True):
        own = each.labels == label
        for box, score in zip(each.boxes[own], each.scores[own], strict=True):
            top, left, bottom, right = box
            lines.append(
                f"{stem} {score:.6f} {left + 1:.2f} {top + 1:.2f} {right:.2f} {bottom:.2f}\n"
            )
    return lines
