"""Feeds mutated weight files to the readers: `python -m proofs fuzz_weights --files 2000
[--kind K] [--seed N] > results.json`.

Each file is read as `googlenet-jax convert` reads it, but by a fork of one process that has
imported the libraries, so that thousands take
minutes. The fork's memory is limited as the child's is; what it does besides reading (running
programs, opening sockets, writing or removing
files) is noted by an audit hook. What can be read goes through the conversion and is written; what
can't must be one UserError.
"""

import argparse
import collections
import io
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {
    "pytorch": "googlenet_torchvision",
    "safetensors": "googlenet_torchvision",
    "caffe": "googlenet",
    "keras": "inception_v3",
}
OPTIONS: dict[str, dict[str, Any]] = {
    kind: {"width": 0.05, "num_classes": 3} for kind in MODELS
} | {"keras": {}}
MODEL_BYTES = 1 << 20
SECONDS = 30
# What no reader has any business to do; an event's name as sys.addaudithook gives it.
FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "shutil.",
    "ctypes.dlopen",
)
_DID_MORE = 77

# ---------------------------------------------------------------------------------------- mutations

Mutation = Callable[[random.Random, bytearray], None]


def _flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _extreme_number(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(len(data) - size, 1))
    data[at : at + size] = rng.choice(
        (b"\xff" * size, b"\x00" * size, b"\x7f" + b"\xff" * (size - 1), rng.randbytes(size))
    )


def _cut(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 64, 4096))]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 8, 512))]
    data[at:at] = piece * rng.choice((1, 2, 100))


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 8, 100)))


MUTATIONS: tuple[Mutation, ...] = (_flip_bits, _truncate, _extreme_number, _cut, _repeat, _insert)


def mutate(rng: random.Random, seed: bytes) -> bytes:
    """One to three mutations; half of them within the first 4 kB or the structure at the end,
    where a file's meaning is.
    """
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not data:
            break
        mutation = rng.choice(MUTATIONS)
        if mutation is not _truncate and len(data) > 8192 and rng.random() < 0.6:
            start = 0 if rng.random() < 0.6 else len(data) - 4096
            window = bytearray(data[start : start + 4096])
            mutation(rng, window)
            data[start : start + 4096] = window
        else:
            mutation(rng, data)
    return bytes(data)


def mutate_members(rng: random.Random, seed: bytes) -> bytes:
    """A zip archive, whole, with one of its members mutated: the pickle sees what a checksum would
    otherwise stop.
    """
    source = zipfile.ZipFile(io.BytesIO(seed))
    names = [
        name
        for name in source.namelist()
        if name.endswith(("data.pkl", "version", "byteorder", ".data/serialization_id"))
    ]
    chosen = rng.choice([name for name in names if name.endswith("data.pkl")] * 4 + names)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as goal:
        for info in source.infolist():
            content = source.read(info)
            goal.writestr(
                info.filename, mutate(rng, content) if info.filename == chosen else content
            )
    return out.getvalue()


# -------------------------------------------------------------------------------------------- seeds


def seeds(kind: str) -> list[bytes]:
    """Whole files of that kind, made by its own library, of a narrow network."""
    from googlenet_jax.models.registry import create_model
    from googlenet_jax.weights.pytorch import torch_names
    from googlenet_jax.weights.tree import expected_shapes

    rng = np.random.default_rng(0)
    if kind == "keras":
        return [_hdf5(rng, compressed) for compressed in (False, True)]
    model = create_model(MODELS[kind], **OPTIONS[kind])
    shapes = expected_shapes(model)
    arrays = {
        name: _values(rng, shapes[path])
        for path, name in torch_names(model).items()
        if path in shapes
    }
    if kind == "caffe":
        return [_caffe(arrays, old) for old in (True, False)]
    if kind == "safetensors":
        import safetensors.numpy

        return [safetensors.numpy.save(arrays, {"format": "pt"})]
    return [_torch(arrays, new) for new in (True, False)]


def _values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), (0,))
    return rng.uniform(0.1, 1, [shape[axis] for axis in order]).astype(np.float32)


def _torch(arrays: dict[str, np.ndarray], new: bool) -> bytes:
    import torch

    out = io.BytesIO()
    checkpoint = {
        "epoch": 3,
        "state_dict": {f"module.{name}": torch.from_numpy(array) for name, array in arrays.items()},
    }
    torch.save(checkpoint, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


def _hdf5(rng: np.random.Generator, compressed: bool) -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.attrs["layer_names"] = [f"conv2d_{i}" for i in range(1, 95)]
        for i in range(1, 95):
            settings = {"compression": "gzip", "shuffle": True} if compressed else {}
            file.create_dataset(
                f"conv2d_{i}/conv2d_{i}/kernel:0",
                data=rng.normal(size=(3, 3, 2, 2)).astype("f4"),
                **settings,
            )
            file.create_dataset(
                f"batch_normalization_{i}/batch_normalization_{i}/beta:0", data=np.zeros(2, "f4")
            )
    return out.getvalue()


def _caffe(arrays: dict[str, np.ndarray], old: bool) -> bytes:
    from tests.weights.caffe_file import caffemodel
    from tests.weights.test_convert import CAFFE

    layers = {
        theirs: [arrays[f"{ours}.weight"], arrays[f"{ours}.bias"]] for theirs, ours in CAFFE.items()
    }
    return caffemodel(layers, old)


# ------------------------------------------------------------------------------------------ the run


def read_in_fork(path: Path, kind: str, out: Path) -> tuple[str, float]:
    """Reads a file in a fork; returns how that ended ("exit", "crash 11", "hang", "did more than
    read") and the growth of its memory in MB.
    """
    from googlenet_jax.weights.isolation import SLACK, limit_memory, send_tensors
    from googlenet_jax.weights.parsers.limits import Request

    report, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        with out.open("wb") as file:
            start = _peak_mb()
            limit_memory(3 * MODEL_BYTES + SLACK)
            sys.addaudithook(
                lambda event, _: os._exit(_DID_MORE) if event.startswith(FORBIDDEN) else None
            )
            send_tensors(Request(str(path), kind, 2 * MODEL_BYTES + SLACK // 16), file)
        os.write(write, struct.pack("d", _peak_mb() - start))
        os._exit(0)
    os.close(write)
    deadline, status = time.monotonic() + SECONDS, None
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.002)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(report)
        return "hang", 0.0
    sent = os.read(report, 8)
    os.close(report)
    assert status is not None
    if os.WIFSIGNALED(status):
        return f"crash {os.WTERMSIG(status)}", 0.0
    return (
        ("exit", struct.unpack("d", sent)[0])
        if os.WEXITSTATUS(status) == 0
        else ("did more than read" if os.WEXITSTATUS(status) == _DID_MORE else "broke off", 0.0)
    )


def _peak_mb() -> float:
    """The largest resident size of this process so far."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def outcome(out: Path, kind: str, folder: Path) -> str:
    """What the conversion makes of the messages: "written", or the kind of complaint. Anything but
    a UserError is a finding.
    """
    from googlenet_jax.errors import UserError
    from googlenet_jax.weights import convert, isolation

    class Watch:
        expired = False

        def parsing(self) -> None:
            pass

    def read(path: Any, *_: Any) -> dict[str, np.ndarray]:
        watch: Any = Watch()
        with out.open("rb") as file:
            return isolation._receive(
                file, str(path), kind, 2 * MODEL_BYTES + isolation.SLACK // 16, watch
            )

    real, convert.read_tensors = convert.read_tensors, read  # type: ignore[assignment]
    try:
        convert.convert(
            folder / "mutated",
            folder / "out.safetensors",
            MODELS[kind],
            options=OPTIONS[kind],
            kind="caffe" if kind == "caffe" else None,
        )
        return "written"
    except UserError as error:
        return "refused" if "\n" not in str(error) else "finding: several lines"
    except EOFError:
        return "finding: the messages broke off"
    except Exception as error:
        return f"finding: {type(error).__name__}: {error}"
    finally:
        convert.read_tensors = real


def fuzz(kind: str, files: int, seed: int) -> dict[str, Any]:
    """Reads `files` mutated files of a kind; returns counts by outcome, the findings and the
    largest growth of memory in MB.
    """
    sources = seeds(kind)
    rng, counts, findings, largest = random.Random(seed), collections.Counter[str](), [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, out, goal = folder / "mutated", folder / "messages", folder / "out.safetensors"
        for number in range(files):
            source = sources[number % len(sources)]
            members = kind == "pytorch" and source.startswith(b"PK") and rng.random() < 0.6
            data = mutate_members(rng, source) if members else mutate(rng, source)
            path.write_bytes(data)
            ended, growth = read_in_fork(path, kind, out)
            result = outcome(out, kind, folder) if ended == "exit" else ended
            largest = max(largest, growth)
            goal.unlink(missing_ok=True)
            left = {entry.name for entry in folder.iterdir()} - {"mutated", "messages"}
            if left:
                result = f"finding: left {sorted(left)}"
            counts[result if result in ("written", "refused") else "finding"] += 1
            if result not in ("written", "refused"):
                findings.append({"number": number, "what": result})
    return {
        "kind": kind,
        "files": files,
        "seed": seed,
        **counts,
        "findings": findings,
        "largest_growth_mb": round(largest, 1),
    }


def main() -> None:
    """Prints one JSON object a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--kind", choices=tuple(MODELS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for kind in args.kind or MODELS:
        print(json.dumps(fuzz(kind, args.files, args.seed)), flush=True)


if __name__ == "__main__":
    main()
