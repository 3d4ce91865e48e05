"""Data sets for these tests: the real digits, and tiny ones of given encoded images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from googlenet_jax.data.sources import load_source

MakeDataSet = Callable[..., Path]


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Encoded images with labels, as the test gives them."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded
    features: tfds.features.FeaturesDict
    examples: list[dict]

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples)


@pytest.fixture
def make_data_set(tmp_path, monkeypatch) -> MakeDataSet:
    """Writes the set "pictures" with a "train" split; returns the data folder. TFDS shuffles:
    `label` tells the examples apart.
    """

    def make(
        images: list[bytes],
        labels: list[int] | None = None,
        *,
        channels: int = 3,
        features: dict | None = None,
    ) -> Path:
        labels = list(range(len(images))) if labels is None else labels
        keys = {
            "image": tfds.features.Image(shape=(None, None, channels)),
            "label": tfds.features.ClassLabel(num_classes=max(1, len(images))),
        }
        monkeypatch.setattr(
            Pictures, "features", tfds.features.FeaturesDict(features or keys), raising=False
        )
        examples = [
            dict(zip(features or keys, pair, strict=True))
            for pair in zip(images, labels, strict=True)
        ]
        monkeypatch.setattr(Pictures, "examples", examples, raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # TFDS leaves an empty folder there
        Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        return tmp_path

    return make


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    load_source("digits", "test", folder)
    return folder
