"""Regions a second of the classifier: windows warped on the device, and on the host by OpenCV.

    python -m benchmarks regions [--size 224] [--width 1.0] [--regions 256] [--images 4]

Both ways classify the same boxes of the same photographs with the same network, in turns in one
process. On the host each window is cut, resized and normalised by OpenCV and NumPy and then
uploaded; on the device an image is uploaded once. Prints JSON.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_image

from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.detection.classifier import Classifier, Scorer, Settings
from googlenet_jax.detection.regions import with_context
from googlenet_jax.models.registry import create_model
from googlenet_jax.runtime.sharding import create_mesh, replicate


def host_windows(image: np.ndarray, boxes: np.ndarray, size: int, fill: np.ndarray) -> np.ndarray:
    """The same windows cut on the host: uint8 [P, size, size, 3], the mean colour beyond the image."""
    result = np.empty((len(boxes), size, size, 3), np.uint8)
    pad = max(image.shape)
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=fill.tolist())
    windows = np.rint(np.asarray(with_context(boxes)) + pad).astype(int)
    for row, (top, left, bottom, right) in enumerate(windows):
        crop = padded[top : max(bottom, top + 1), left : max(right, left + 1)]
        shrinks = crop.shape[0] > size and crop.shape[1] > size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        result[row] = cv2.resize(crop, (size, size), interpolation=how)
    return result


def photographs(images: int, regions: int) -> tuple[list[np.ndarray], np.ndarray]:
    """scikit-learn's two in turns, 427 × 500, and random boxes of 30 to 120 pixels in each."""
    names = ("china.jpg", "flower.jpg")
    pictures = [load_sample_image(names[i % 2])[:, :500] for i in range(images)]
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (images, regions, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 120, corner.shape)], axis=2)
    return pictures, boxes.astype(np.float32)


def ways(args: argparse.Namespace) -> dict[str, Callable[[], np.ndarray]]:
    """What is timed: each classifies, or warps, every region of every photograph."""
    model = create_model(
        "googlenet_bn", num_classes=21, width=args.width, stem=args.stem, aux_heads=False
    )
    how, mesh = Preprocessing(size=args.size, resize=args.size), create_mesh()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shape = (1, args.size, args.size, 3)
    variables = jax.jit(lambda: model.init(keys, jnp.zeros(shape), train=False))()
    variables = replicate(variables, mesh)
    scorer = Scorer([Classifier(model, how)], Settings(canvas=512, batch=args.batch), mesh)
    classify = jax.jit(
        lambda variables, images: jax.nn.softmax(
            model.apply(variables, normalize(images, how), train=False).logits
        )
    )
    images, boxes = photographs(args.images, args.regions)
    fill = np.array(how.mean)

    def on_device() -> np.ndarray:
        waiting = [scorer.dispatch([variables], *pair) for pair in zip(images, boxes, strict=True)]
        return np.stack([wait().probabilities[0] for wait in waiting])

    def warp_on_host() -> np.ndarray:
        pairs = zip(images, boxes, strict=True)
        return np.stack([host_windows(*pair, args.size, fill) for pair in pairs])

    def on_host() -> np.ndarray:
        parts = []
        for windows in warp_on_host():
            chunks = np.split(windows, range(args.batch, args.regions, args.batch))
            parts.append(np.concatenate([classify(variables, chunk) for chunk in chunks]))
        return np.stack(parts)

    return {"device": on_device, "host": on_host, "host_warp_alone": warp_on_host}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--stem", default="dense")
    parser.add_argument("--regions", type=int, default=256, help="of an image")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    timed = ways(args)
    difference = np.abs(timed["device"]() - timed["host"]()).max()  # also compiles both
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(args.rounds):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    count = args.images * args.regions
    rates = {name: count / min(each) for name, each in seconds.items()}
    hardware = f"{os.cpu_count()} CPUs, {platform.processor() or platform.machine()}"
    result = {
        "regions_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "device_over_host": round(rates["device"] / rates["host"], 3),
        "largest_difference_of_probabilities": float(difference),
        "settings": vars(args),
        "hardware": f"{jax.devices()[0].device_kind}, {hardware}, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
