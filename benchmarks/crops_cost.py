"""What 144 crops cost beside 144 times one crop: images/s of both in one run, on photographs.

    python -m benchmarks crops_cost [--model googlenet] [--images 4] [--width 1.0] [--rounds 3]

One crop is cut on the host; the 144 are scaled and cut on the device, so the ratio shows what that
costs. Random weights. The rounds alternate; the medians count. Prints JSON.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.evaluation.ensemble import Ensemble, Member
from googlenet_jax.models.registry import create_model
from googlenet_jax.runtime.sharding import create_mesh

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="googlenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=48)
    args = parser.parse_args()

    model = create_model(args.model, num_classes=1000, width=args.width, aux_heads=False)
    zeros = jnp.zeros((1, SIZE, SIZE, 3))
    variables = jax.jit(lambda key: model.init(key, zeros, train=False))(jax.random.key(0))
    member = Member(args.model, model, variables, Preprocessing(size=SIZE))
    photographs = [image for image in load_sample_images().images]
    images = [photographs[i % len(photographs)] for i in range(args.images)]
    seconds: dict[int, list[float]] = {1: [], 144: []}
    runs = {}
    for crops, given in ((1, images * 144), (144, images)):
        ensemble = Ensemble(
            [member],
            crops=crops,
            batch_size=args.batch_size,
            mesh=create_mesh(),
            images_at_most=len(given),
        )
        runs[crops] = ensemble, given
        evaluate(ensemble, given[:1])  # compiles
    for _ in range(args.rounds):
        for crops, (ensemble, given) in runs.items():
            start = time.perf_counter()
            evaluate(ensemble, given)
            seconds[crops].append(time.perf_counter() - start)
    one, many = (statistics.median(seconds[crops]) for crops in (1, 144))
    result = {
        "model": args.model,
        "width": args.width,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        "images": args.images,
        "batch_size": args.batch_size,
        "images_per_second_144_crops": args.images / many,
        "images_per_second_144_times_one_crop": args.images / one,
        "ratio": one / many,
        "seconds": seconds,
    }
    print(json.dumps(result, indent=2))


def evaluate(ensemble: Ensemble, images: list[np.ndarray]) -> None:
    """Computes all probabilities and drops them."""
    step = ensemble.images_at_a_time
    parts = ensemble.run(
        range(0, len(images), step), lambda first: (images[first : first + step], None), threads=1
    )
    for _ in parts:
        pass


if __name__ == "__main__":
    main()
