"""Files that are damaged or mean harm: one line each, nothing run, nothing left behind, the caller
unharmed.
"""

import collections
import io
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from googlenet_jax.errors import UserError
from googlenet_jax.weights import isolation
from googlenet_jax.weights.convert import convert
from googlenet_jax.weights.isolation import read_tensors
from googlenet_jax.weights.kinds import detect_kind
from tests.weights.caffe_file import NetParameter, caffemodel
from tests.weights.conftest import read_in_process

SMALL = 1 << 20  # bytes of a model


def saved(value: Any, **settings: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **settings)
    return out.getvalue()


GOOD = {"conv1.conv.weight": torch.ones(8, 3, 7, 7)}


class Runs:
    """Unpickled by Python it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def hdf5(fill: Callable[[h5py.File], None]) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        fill(file)
    return out.getvalue()


def cycle(file: h5py.File) -> None:
    file.create_group("a")["b"] = file["/"]
    file["a/x"] = np.ones(3, "f4")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("conv2d/conv2d/kernel", layout)


def bomb(file: h5py.File) -> None:
    file.create_dataset(
        "conv2d/conv2d/kernel", (1 << 40,), "f4", chunks=(1 << 16,), compression="gzip"
    )


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def repacked(method: int, rename: str = "", twice: bool = False) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(saved(GOOD)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for info in source.infolist():
            file.writestr(rename + info.filename, source.read(info))
        if twice:
            file.writestr(source.infolist()[0].filename, b"other")
    return out.getvalue()


def huge_blob() -> bytes:
    net = NetParameter()
    blob = net.layer.add(name="conv1/7x7_s2").blobs.add()
    blob.shape.dim.extend([1 << 30, 1 << 30])
    blob.data.extend([1.0])
    return net.SerializeToString()


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "stride 0": (
        "pytorch",
        saved({"x": torch.ones(1).expand(1 << 20, 1 << 20)}),
        "more than such a network",
    ),
    "meta tensor": (
        "pytorch",
        saved({"x": torch.empty(1 << 20, 1 << 20, device="meta")}),
        "plain dense tensor",
    ),
    "sparse": ("pytorch", saved({"x": torch.eye(3).to_sparse()}), "plain dense tensor"),
    "complex": (
        "pytorch",
        saved({"x": torch.ones(3, dtype=torch.complex64)}),
        "plain dense tensor",
    ),
    "no state dict": ("pytorch", saved([1, 2]), "no state dict but a list"),
    "empty state dict": ("pytorch", saved({}), "no state dict but a dict"),
    "compressed archive": ("pytorch", repacked(zipfile.ZIP_DEFLATED), "compressed"),
    "absolute path": ("pytorch", repacked(zipfile.ZIP_STORED, rename="/"), "outside the archive"),
    "two members": ("pytorch", repacked(zipfile.ZIP_STORED, twice=True), "two members of one name"),
    "no pickle": ("pytorch", zipped({"a/data/0": b"x" * 100}), "without data.pkl"),
    "torchscript": (
        "pytorch",
        zipped({"a/data.pkl": b"x", "a/constants.pkl": b"x"}),
        "TorchScript",
    ),
    "huge pickle": ("pytorch", zipped({"a/data.pkl": bytes(17 << 20)}), "its pickle is"),
    "zip bomb": (
        "keras",
        zipped({"model.weights.h5": bytes(80 << 20)}, zipfile.ZIP_DEFLATED),
        "unpacks to",
    ),
    "no weights": ("keras", zipped({"config.json": b"{}"}), "0 members 'model.weights.h5'"),
    "not hdf5": ("keras", zipped({"model.weights.h5": b"hello"}), "not an HDF5 file"),
    "external link": (
        "keras",
        hdf5(lambda f: f.__setitem__("conv2d", h5py.ExternalLink("/etc/hostname", "/"))),
        "link to elsewhere",
    ),
    "soft link": (
        "keras",
        hdf5(lambda f: f.__setitem__("conv2d", h5py.SoftLink("/x"))),
        "link to elsewhere",
    ),
    "external storage": (
        "keras",
        hdf5(
            lambda f: f.create_dataset(
                "conv2d/conv2d/kernel", (4,), "u1", external=[("/etc/hostname", 0, 4)]
            )
        ),
        "another file",
    ),
    "virtual": ("keras", hdf5(virtual), "another file"),
    "terabytes": ("keras", hdf5(bomb), "more than such a network"),
    "text": (
        "keras",
        hdf5(lambda f: f.__setitem__("conv2d/conv2d/kernel", "hello")),
        "must hold numbers",
    ),
    "huge blob": ("caffe", huge_blob(), "more than such a network"),
    "negative blob": (
        "caffe",
        caffemodel({"a": [np.ones((1, 2), "f4")]}, True).replace(b"\x20\x02", b"\x20\x03"),
        "must hold 3 values",
    ),
    "no layers": ("caffe", b"", "without weights"),
    "not protobuf": ("caffe", b"\xff" * 64, "not a whole caffemodel"),
    "long header": ("safetensors", header(b'{"x":') + b"9" * 100, "not a whole safetensors"),
    "huge header": (
        "safetensors",
        (1 << 62).to_bytes(8, "little") + b"{}",
        "not a whole safetensors",
    ),
    "absurd shape": (
        "safetensors",
        header(
            b'{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', b"abcd"
        ),
        "not a whole safetensors",
    ),
    "integers of 8 bits": (
        "safetensors",
        header(b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"abcd"),
        "dtype U8",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_one_line(name: str, tmp_path: Path) -> None:
    kind, data, says = HOSTILE[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_in_process(path, kind, SMALL)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_cycle_of_groups_ends(tmp_path: Path) -> None:
    (tmp_path / "c.h5").write_bytes(hdf5(cycle))
    assert list(read_in_process(tmp_path / "c.h5", "keras", SMALL)) == ["a/x"]


@pytest.mark.parametrize("zipped_form", [True, False])
def test_a_pickle_that_would_run_code_is_not_run(zipped_form: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save(
        {**GOOD, "evil": Runs(str(canary))}, path, _use_new_zipfile_serialization=zipped_form
    )
    with pytest.raises(UserError, match=r"asks for (posix|nt|os)\.mkdir, which is not run"):
        read_tensors(path, "pytorch", SMALL)
    assert not canary.exists()


def test_a_bare_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Runs(str(tmp_path / "canary"))))
    with pytest.raises(UserError, match="a Python pickle, which could run code"):
        detect_kind(tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"hello, world", "no weight file that is known"),
    ],
)
def test_what_is_no_weight_file(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(UserError, match=says):
        detect_kind(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.weights.test_convert import state_dict

    monkeypatch.setattr("googlenet_jax.weights.convert.read_tensors", read_in_process)
    given = state_dict("googlenet_torchvision", aux_heads=False)
    given["inception4a.branch2.0.conv.weight"][0, 0] = value
    torch.save(given, tmp_path / "in.pth")
    with pytest.raises(
        UserError,
        match="params/inception_4a/conv_3x3_reduce/kernel holds 1 values that are not finite",
    ):
        convert(
            tmp_path / "in.pth",
            tmp_path / "out.safetensors",
            "googlenet_torchvision",
            options={"width": 0.125},
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_a_truncated_file_of_each_kind(tmp_path: Path) -> None:
    import safetensors.torch

    whole = {
        "pytorch": saved(GOOD),
        "keras": hdf5(
            lambda f: f.__setitem__("conv2d/conv2d/kernel", np.ones((3, 3, 3, 32), "f4"))
        ),
        "safetensors": safetensors.torch.save(GOOD),
        "caffe": caffemodel({"conv1/7x7_s2": [np.ones((8, 3, 7, 7))]}, old=True),
    }
    for kind, data in whole.items():
        path = tmp_path / kind
        path.write_bytes(data)
        assert read_in_process(path, kind, SMALL)
        for share in (0.1, 0.5, 0.99):
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(UserError, match=str(path)):
                read_in_process(path, kind, SMALL)


# -------------------------------------------------------------------------------- the child process


def test_a_reader_that_crashes_or_hangs_is_told_and_not_felt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"{}")
    code = {
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "hangs": "import time; time.sleep(60)",
    }
    monkeypatch.setattr(isolation, "START_SECONDS", 0.5)
    for what, says in (("crashes", "stopped"), ("hangs", "took more than")):
        monkeypatch.setattr(isolation, "_MAIN", code[what])
        start = time.monotonic()
        with pytest.raises(UserError, match=says):
            read_tensors(tmp_path / "x", "safetensors", SMALL)
        assert time.monotonic() - start < 30


def test_the_child_s_memory_is_bounded(tmp_path: Path) -> None:
    """A header of 80 MB takes its reader several times that; for a model of 1 MB it may grow by 67
    MB.
    """
    entries = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_500_000)
    )
    (tmp_path / "big.safetensors").write_bytes(header(f"{{{entries}}}".encode()))
    with pytest.raises(UserError, match=r"needs more memory|stopped"):
        read_tensors(tmp_path / "big.safetensors", "safetensors", SMALL)


def test_the_child_reads_what_the_parent_would(tmp_path: Path) -> None:
    torch.save(collections.OrderedDict(GOOD), tmp_path / "g.pth")
    tensors = read_tensors(tmp_path / "g.pth", "pytorch", SMALL)
    np.testing.assert_array_equal(tensors["conv1.conv.weight"], np.ones((8, 3, 7, 7), np.float32))
