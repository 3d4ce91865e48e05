"""Feeds mutated pictures to the three doors that read pictures, and looks whether all say the same.

    python -m proofs fuzz_pictures --mutants 2000 > results.json

For each of ten formats it writes mutants of small real pictures, beside good ones, into a folder by
class. `prepare folder` makes a data set of it, training's reader goes through that (exact and fast
decoding, pictures that can't be read skipped), and `predict` through the folder. No exception may
escape, each good picture must come out as its pixels, and the three must call the same files
unreadable. Each format has a process of its own, so that a crash of a decoder would be seen.
"""

import argparse
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "DDS")
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "LA", "I;16", "1"),
    "TIFF": ("RGB", "RGBA", "P", "I;16", "CMYK", "1"),
    "BMP": ("RGB", "P", "L"),
    "GIF": ("P",),
    "PPM": ("RGB", "L"),
}
GOOD = 5
SIZE = 16  # of the network's input
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0", b"\x80\0\0\0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mutants", type=int, default=2000, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, help="this one alone, in this process")
    parser.add_argument("--together", action="store_true", help="all formats in this process")
    args = parser.parse_args()
    if args.format or args.together:
        mutants = {
            name: mutant
            for form in ([args.format] if args.format else FORMATS)
            for name, mutant in make_mutants(form, args.mutants, args.seed)
        }
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(put_through(Path(folder), mutants)))
        return 0
    results = {}
    for name in FORMATS:
        options = ["--format", name, "--mutants", str(args.mutants), "--seed", str(args.seed)]
        command = [sys.executable, "-m", "proofs.fuzz_pictures", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        escaped = {"exit": done.returncode, "stderr": done.stderr[-2000:]}
        results[name] = json.loads(done.stdout) if done.returncode == 0 else escaped
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2))
    return int(any("exit" in each for each in results.values()))


# ----------------------------------------------------------------------------------------- mutants


def originals(name: str) -> list[bytes]:
    """Small real pictures of a format, in the modes that it has."""
    made = []
    for photo in ("china.jpg", "flower.jpg"):
        for mode in MODES.get(name, ("RGB",)):
            small = Image.fromarray(load_sample_image(photo)[100:340:8, 100:420:8])
            if mode == "I;16":
                small = Image.fromarray(np.asarray(small.convert("L"), np.uint16) * 257)
            buffer = io.BytesIO()
            small.convert(mode).save(buffer, name)
            made.append(buffer.getvalue())
    return made


def make_mutants(name: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many mutants of a format: (file name, content)."""
    rng = random.Random(f"{name} {seed}")
    begun = originals(name)
    for number in range(count):
        yield f"{name.lower()}_{number}.jpg", mutate(rng.choice(begun), rng)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Changes bytes, lengths and fields; more often near the beginning, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        reach = len(data) if rng.random() < 0.4 else min(len(data), rng.choice((32, 64, 256)))
        place = rng.randrange(max(1, reach))
        kind = rng.random()
        if kind < 0.4:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind < 0.6:
            data[place : place + 4] = rng.choice(EXTREMES)
        elif kind < 0.7:
            data[place : place + 1] = bytes(
                [data[place] ^ (1 << rng.randrange(8))] if data else b""
            )
        elif kind < 0.8:
            del data[place : place + rng.choice((1, 2, 7, 100))]
        elif kind < 0.9:
            data[place:place] = data[place : place + rng.choice((1, 4, 50))]
        else:
            del data[max(1, rng.randrange(len(data) + 1)) :]
    mutant = bytes(data)
    # A PNG's check sums would keep most mutants from its decoder: half of them are made good.
    return with_check_sums(mutant) if content[1:4] == b"PNG" and rng.random() < 0.5 else mutant


def with_check_sums(png: bytes) -> bytes:
    """The same chunks, as far as their lengths lead, each with its right check sum."""
    made, place = bytearray(png[:8]), 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        chunk = png[place + 4 : end]
        made += png[place : place + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        place = end + 4
    return bytes(made)


# ------------------------------------------------------------------------------------------- doors


def put_through(folder: Path, mutants: dict[str, bytes]) -> dict[str, Any]:
    """Writes the mutants and some good pictures below `folder`, puts them through the three doors,
    and returns figures.

    Raises AssertionError where the doors differ, and whatever escapes them.
    """
    source = folder / "pictures"
    (source / "bad").mkdir(parents=True)
    (source / "good").mkdir()
    for name, content in mutants.items():
        (source / "bad" / name).write_bytes(content)
    for number in range(GOOD):
        photo = load_sample_image("flower.jpg")[number : number + 90, : 60 + 10 * number]
        Image.fromarray(photo).save(source / "good" / f"{number}.png")
    start = time.monotonic()
    unreadable = through_prepare(source, folder / "data")
    prepared = time.monotonic()
    # The fast decoder is for JPEGs alone.
    has_jpegs = any(mutant.startswith(b"\xff\xd8") for mutant in mutants.values())
    for exact in (True, False) if has_jpegs else (True,):
        bad = through_training(folder / "data", exact)
        assert exact is False or bad == unreadable, f"training differs: {bad ^ unreadable}"
        # The fast decoder may read a damaged JPEG that the exact one doesn't, never a good one
        # less.
        assert all(name.startswith("bad/") for name in bad)
    trained = time.monotonic()
    refused = through_predict(source, folder)
    assert refused == unreadable, f"predict differs: {refused ^ unreadable}"
    assert all(name.startswith("bad/") for name in unreadable), "a good picture is called bad"
    seconds = (prepared - start, trained - prepared, time.monotonic() - trained)
    return {
        "mutants": len(mutants),
        "unreadable": len(unreadable),
        "good_served": GOOD,
        "seconds": dict(zip(("prepare", "training", "predict"), map(round, seconds), strict=True)),
    }


def command(*argv: str) -> tuple[int, str, str]:
    """Runs a command in this process: its status, standard output and standard error."""
    from googlenet_jax.cli.main import main as run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([*argv, "--json"])
    assert "Traceback" not in err.getvalue() and "unexpected" not in err.getvalue(), err.getvalue()
    return status, out.getvalue(), err.getvalue()


def through_prepare(source: Path, data_dir: Path) -> set[str]:
    argv = ("prepare", "folder", str(source), "--name", "fuzz", "--data-dir", str(data_dir))
    status, out, err = command(*argv, "--validation-fraction", "0")
    assert status == 0, err
    lines = json.loads(out)["unreadable"]
    return {re.search(r"\((bad/[^)]*|good/[^)]*)\)", line)[1] for line in lines}  # type: ignore[index]


def through_training(data_dir: Path, exact: bool) -> set[str]:
    """Reads an epoch's batches, and the evaluation's, as training does."""
    from googlenet_jax.data.bad_images import BadImages
    from googlenet_jax.data.pipeline import RandomCrop, eval_batches, eval_image, train_batches
    from googlenet_jax.data.preprocessing import Preprocessing
    from googlenet_jax.data.sources import load_source

    source = load_source("fuzz", "train", data_dir)
    names = [record.file_name for record in source.records(range(len(source)))]
    bad = BadImages(len(source), log=lambda line: None)
    preprocessing = Preprocessing(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3, "rgb")
    reading = {"threads": 2, "exact_decoding": exact, "bad_images": bad}
    for batch in eval_batches(source, batch_size=32, preprocessing=preprocessing, **reading):
        for image, weight, index in zip(
            batch["image"], batch["weight"], batch["index"], strict=True
        ):
            if exact and weight and names[index].startswith("good/"):
                expected = eval_image(source[index]["image"], preprocessing)
                np.testing.assert_array_equal(image, expected)
    options = {"batch_size": 32, "size": SIZE, "augment": RandomCrop(), "seed": 0, **reading}
    batches = train_batches(source, **options)
    for _ in range(-(-len(source) // 32)):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    return {names[index] for _, _, index in bad.found}


def through_predict(source: Path, folder: Path) -> set[str]:
    weights = tiny_weights(folder / "tiny.safetensors")
    status, out, _ = command("predict", "--weights", str(weights), str(source))
    lines = [json.loads(line) for line in out.splitlines()]
    refused = {str(Path(e["image"]).relative_to(source)) for e in lines if "error" in e}
    assert len(lines) == sum(1 for _ in source.rglob("*.*")), "a picture has no line"
    assert status == (1 if refused else 0)
    return refused


def tiny_weights(path: Path) -> Path:
    import jax
    import jax.numpy as jnp

    import googlenet_jax as gj
    from googlenet_jax.data.preprocessing import Preprocessing

    model = gj.create_model("googlenet_plain", num_classes=2, width=0.03, stem="small")
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)
    about = {
        "preprocessing": Preprocessing(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3, "rgb").to_dict(),
        "class_names": ["bad", "good"],
    }
    gj.save_weights(path, model, variables, **about)
    return path


if __name__ == "__main__":
    sys.exit(main())
