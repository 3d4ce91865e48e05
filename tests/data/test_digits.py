import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from googlenet_jax.data import digits
from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError


def test_holds_every_one_of_scikit_learn_s_images_once(digits_dir):
    source = load_source("digits", "train+test", digits_dir)
    written = Counter(
        (example["image"].tobytes(), example["label"])
        for example in source.read(range(len(source)))
    )
    bundled = load_digits()
    scaled = np.rint(bundled.images / 16 * 255).astype(np.uint8)
    assert written == Counter(
        (image.tobytes(), int(label)) for image, label in zip(scaled, bundled.target, strict=True)
    )
    assert source[0]["image"].shape == (8, 8, 1)
    assert source.class_names == tuple("0123456789")


def test_the_split_is_stratified_and_never_moves(digits_dir):
    train, test = (load_source("digits", split, digits_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    shares = [
        np.bincount([example["label"] for example in source.read(range(len(source)))]) / len(source)
        for source in (train, test)
    ]
    np.testing.assert_allclose(*shares, atol=0.003)
    # The order of the examples too: a run's batches depend on it.
    assert (
        zlib.crc32(b"".join(example["image"].tobytes() for example in test.read(range(len(test)))))
        == 914332905
    )


def test_several_processes_may_write_it_at_once(tmp_path):
    code = (
        "import sys, pathlib; from googlenet_jax.data.digits import prepare_digits;"
        " prepare_digits(pathlib.Path(sys.argv[1]))"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    messages = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], messages
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len(load_source("digits", "train+test", tmp_path)) == 1797


def test_the_process_that_comes_second_leaves_the_first_one_s_files(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    folder = tmp_path / "digits" / "1.0.0"
    before = folder.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: False)  # as it was when the second one began
        digits.prepare_digits(tmp_path)
    assert folder.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(digits.cv2, "imencode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_digits(tmp_path)
    assert not list(tmp_path.glob("digits/*")) and not list(tmp_path.glob(".digits*"))
    assert len(load_source("digits", "test", tmp_path)) == 360


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data_dir: can't write the data set digits into .*file"):
        load_source("digits", "train", tmp_path / "file")
