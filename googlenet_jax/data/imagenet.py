"""ImageNet's 1,000 classes (ILSVRC 2012), in the order of the labels: that of the WordNet ids.

Names are torchvision's (`torchvision/models/_meta.py`), ids timm's
(`timm/data/_info/imagenet_synsets.txt`).
"""

import functools
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """A class: its WordNet id, such as "n01440764", and an English name."""

    wordnet_id: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns the 1,000 classes, label by label."""
    text = (
        resources.files("googlenet_jax.data")
        .joinpath("imagenet_classes.tsv")
        .read_text(encoding="utf-8")
    )
    return tuple(ImageNetClass(*line.split("\t")) for line in text.splitlines())


def class_names(background: bool = False) -> tuple[str, ...]:
    """Returns the names of the 1,000 classes, after "background" where that is the first."""
    names = tuple(entry.name for entry in imagenet_classes())
    return ("background", *names) if background else names


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names for people: where all are WordNet ids of ImageNet's, what these mean."""
    known = {entry.wordnet_id: entry.name for entry in imagenet_classes()}
    return tuple(known[name] for name in names) if set(names) <= known.keys() else tuple(names)
