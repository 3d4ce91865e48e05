"""Images per second from JPEG bytes to uint8 batches, beside a tf.data pipeline of the same work;
and how it grows with workers.

    python -m benchmarks input [--images 256] [--rounds 7] [--workers 1 2 4] >
    benchmarks/results/DATE-input.json

Needs TensorFlow (`pip install 'googlenet-jax[prepare]'`) and is meant for one core (`taskset -c
0`), but for the workers.

Both sides take the same JPEGs of real photographs (scikit-learn's two, cut and scaled to ImageNet's
usual 500 × 375, quality 92) and the same crops (8–100 % of the area), and scale them to 224 × 224
with the same filter; both make uint8. They run in
turn, round by round, and are compared by CPU seconds, of which the median counts: wall time would
    count other processes.
`tf.image.decode_and_crop_jpeg` reads and transforms no more than the crop's rows.
"""

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from googlenet_jax.data.decoding import decode_crop
from googlenet_jax.data.pipeline import CROP_TRIES, RandomCrop, random_crop
from googlenet_jax.data.resampling import ANTIALIASED
from googlenet_jax.data.workers import read_in_workers

SIZE, BATCH, QUALITY = 224, 32, 92
# Ours, and TensorFlow's name and antialias flag for the same filter.
FILTERS = {
    "plain bilinear": ("bilinear", "bilinear", False),
    "antialiased bilinear": (ANTIALIASED, "bilinear", True),
    "area": ("area", "area", False),
    "plain nearest": ("nearest", "nearest", False),
}


def photographs(count: int, seed: int = 0) -> list[bytes]:
    """Encodes parts of scikit-learn's photographs, each 500 × 375."""
    rng, encoded = np.random.default_rng(seed), []
    for number in range(count):
        whole = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
        height = int(rng.integers(300, 428))
        width = min(640, height * 4 // 3)
        top, left = rng.integers(0, 428 - height), rng.integers(0, 641 - width)
        part = cv2.resize(
            whole[top : top + height, left : left + width],
            (500, 375),
            interpolation=cv2.INTER_CUBIC,
        )
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, "JPEG", quality=QUALITY)
        encoded.append(buffer.getvalue())
    return encoded


def crops(count: int, seed: int = 1) -> list[tuple[int, int, int, int]]:
    """Returns a random crop for each photograph: top, left, height, width."""
    draws = np.random.default_rng(seed).random((count, CROP_TRIES + 1, 2))
    return [random_crop(375, 500, RandomCrop(), draw.tolist()) for draw in draws]


class OurBatches:
    """Batch k: the next BATCH photographs, over and over. Sent to workers as it is."""

    def __init__(
        self,
        images: list[bytes],
        boxes: list[tuple[int, int, int, int]],
        interpolation: str,
        exact: bool,
    ) -> None:
        self.images, self.boxes, self.interpolation, self.exact = (
            images,
            boxes,
            interpolation,
            exact,
        )

    def __call__(self) -> "OurBatches":
        return self

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
        for row in range(BATCH):
            place = (number * BATCH + row) % len(self.images)
            batch[row] = decode_crop(
                self.images[place],
                lambda height, width, box=self.boxes[place]: box,
                lambda height, width: (SIZE, SIZE),
                self.interpolation,
                exact=self.exact,
            )
        return {"image": batch}


def tensorflow_batches(
    images: list[bytes], boxes: Any, method: str, antialias: bool, fastest: bool
) -> Iterable[Any]:
    """The same work as a tf.data pipeline of one thread; `fastest` asks for the fast transform and
    plain upsampling of colours."""
    import tensorflow as tf

    options = {"dct_method": "INTEGER_FAST", "fancy_upscaling": False} if fastest else {}

    def decode(encoded: Any, box: Any) -> Any:
        image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3, **options)
        image = tf.image.resize(image, (SIZE, SIZE), method=method, antialias=antialias)
        return tf.saturate_cast(tf.round(tf.cast(image, tf.float32)), tf.uint8)

    data = (
        tf.data.Dataset.from_tensor_slices((images, np.array(boxes, np.int32)))
        .map(decode)
        .batch(BATCH)
    )
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = 1
    threads.threading.max_intra_op_parallelism = 1
    return data.with_options(threads)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and its threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(images: list[bytes], boxes: Any, rounds: int) -> dict[str, Any]:
    """For each filter: images per CPU second on each side, their ratio, and how far the outputs are
    apart."""
    batches = len(images) // BATCH
    results = {}
    for name, (interpolation, method, antialias) in FILTERS.items():
        ours = {exact: OurBatches(images, boxes, interpolation, exact) for exact in (False, True)}
        theirs = {
            fastest: tensorflow_batches(images, boxes, method, antialias, fastest)
            for fastest in (False, True)
        }
        sides: dict[str, Callable[[], Any]] = {
            "ours": lambda ours=ours: [ours[False][k] for k in range(batches)],
            "tf_data": lambda theirs=theirs: list(theirs[False]),
            "ours_exact": lambda ours=ours: [ours[True][k] for k in range(batches)],
            "tf_data_fastest": lambda theirs=theirs: list(theirs[True]),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, work in sides.items():
                times[side].append(cpu_seconds(work))
        speed = {side: len(images) / statistics.median(seconds) for side, seconds in times.items()}
        expected = np.concatenate([batch.numpy() for batch in theirs[False]])
        apart = {
            side: difference(
                np.concatenate([ours[side == "ours_exact"][k]["image"] for k in range(batches)]),
                expected,
            )
            for side in ("ours", "ours_exact")
        }
        results[name] = {
            "images_per_cpu_second": {side: round(value) for side, value in speed.items()},
            "ratio": round(
                statistics.median(
                    t / o for o, t in zip(times["ours"], times["tf_data"], strict=True)
                ),
                2,
            ),
            "ratio_exact_decoding": round(
                statistics.median(
                    t / o for o, t in zip(times["ours_exact"], times["tf_data"], strict=True)
                ),
                2,
            ),
            "ratio_to_fastest_tf": round(
                statistics.median(
                    t / o for o, t in zip(times["ours"], times["tf_data_fastest"], strict=True)
                ),
                2,
            ),
            "difference_from_tf_data": apart,
        }
        print(name, results[name], file=sys.stderr)
    return results


def difference(images: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean absolute difference in levels of 0–255, and PSNR in dB."""
    error = images.astype(np.float64) - expected
    return {
        "mean_absolute": round(float(np.abs(error).mean()), 3),
        "psnr_db": round(float(10 * np.log10(255**2 / (error**2).mean())), 1),
    }


def decoding_cost(rng: np.random.Generator, count: int = 64) -> dict[str, Any]:
    """Scaled decoding against a full decode, where it is used: photographs of 1280 × 960, random
    crops to 224 × 224."""
    results = {}
    for name, interpolation in (("area", "area"), ("antialiased bilinear", ANTIALIASED)):
        pairs = []
        for number in range(count):
            part = cv2.resize(
                load_sample_image(("china.jpg", "flower.jpg")[number % 2]),
                (1280, 960),
                interpolation=cv2.INTER_CUBIC,
            )
            buffer = io.BytesIO()
            Image.fromarray(part).save(buffer, "JPEG", quality=QUALITY)
            box = random_crop(960, 1280, RandomCrop(), rng.random((CROP_TRIES + 1, 2)).tolist())
            pairs.append(
                [
                    OurBatches([buffer.getvalue()], [box], interpolation, exact)[0]["image"][0]
                    for exact in (False, True)
                ]
            )
        fast, exact = np.stack(pairs, axis=1)
        results[name] = difference(fast, exact)
    return results


def growth(
    images: list[bytes], boxes: Any, workers: list[int], batches: int = 40
) -> dict[str, float]:
    """Images per second of wall time with so many worker processes, without their start."""
    results = {}
    for count in workers:
        read = read_in_workers(
            OurBatches(images, boxes, "bilinear", False),
            (BATCH, SIZE, SIZE, 3),
            range(sys.maxsize),
            count,
        )
        for _ in range(4 * count):
            next(read)
        began = time.perf_counter()
        for _ in itertools.islice(read, batches):
            pass
        results[str(count)] = round(batches * BATCH / (time.perf_counter() - began))
        read.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    args = parser.parse_args()
    cv2.setNumThreads(0)
    images, boxes = photographs(args.images), crops(args.images)
    kilobytes = sum(map(len, images)) // len(images) // 1000
    packages = (
        "jax",
        "opencv-contrib-python-headless",
        "simplejpeg",
        "cykooz-resizer",
        "tensorflow-cpu",
    )
    result = {
        "what": f"JPEG (500 × 375, quality {QUALITY}, {kilobytes} kB) → random crop → {SIZE} × "
        f"{SIZE} uint8",
        "hardware": f"{os.cpu_count()} CPUs, {platform.processor() or platform.machine()}, load "
        f"{os.getloadavg()[0]:.1f}",
        "versions": {name: metadata.version(name) for name in packages},
        "filters": compare(images, boxes, args.rounds),
        "scaled_decoding_against_full": decoding_cost(np.random.default_rng(2)),
        "images_per_second_with_workers": growth(images, boxes, args.workers),
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
