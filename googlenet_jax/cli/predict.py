"""`googlenet-jax predict`: what a finished run's model sees in pictures."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("predict", help="the most probable classes of pictures, from a run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder (train.py's --workdir)")
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: ema where the run has it")
    parser.add_argument("--step", type=int, metavar="K", help="which of the kept checkpoints (default: the newest)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to show for each picture (default: 5)")
    parser.add_argument("--grid", metavar="FILE.png", help="draw the pictures with their predictions into this file")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Prints the predictions; returns 0."""
    import numpy as np

    from googlenet_jax.data.pipeline import eval_image
    from googlenet_jax.errors import UserError
    from googlenet_jax.evaluation.pictures import draw_grid, read_picture
    from googlenet_jax.evaluation.predict import predict, top_predictions
    from googlenet_jax.training.process import prepare
    from googlenet_jax.training.run import load_run

    if args.top < 1:
        raise UserError(f"--top: expected at least 1, found {args.top}")
    pictures = [read_picture(path) for path in args.images]
    prepare()
    trained = load_run(args.run, args.weights, args.step)
    crops = [eval_image(picture, trained.preprocessing) for picture in pictures]
    probabilities = predict(trained.model, trained.variables, np.stack(crops), trained.preprocessing)
    predictions = [top_predictions(each, trained.class_names, args.top) for each in probabilities]
    if args.grid:
        draw_grid(args.grid, crops, [Path(path).name for path in args.images], predictions)
    if args.json:
        results = zip(args.images, predictions, strict=True)
        print(json.dumps([{"image": path, "predictions": [each._asdict() for each in top]} for path, top in results], indent=2))
        return 0
    width = max(len(prediction.class_name) for top in predictions for prediction in top)
    for path, top in zip(args.images, predictions, strict=True):
        print(path)
        for prediction in top:
            print(f"  {prediction.class_name:{width}}  {100 * prediction.probability:6.2f} %")
    if args.grid:
        print(f"\nwrote {args.grid}")
    return 0
