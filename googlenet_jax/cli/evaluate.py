"""`googlenet-jax evaluate`: loss and accuracy of a finished run over a whole split."""

import argparse
import json
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("evaluate", help="loss, top-1 and top-5 of a run over a split")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder (train.py's --workdir)")
    parser.add_argument("--split", metavar="S", help="such as test or train[90%%:] (default: the run's first evaluation split)")
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: ema where the run has it")
    parser.add_argument("--step", type=int, metavar="K", help="which of the kept checkpoints (default: the newest)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="over all devices (default: the run's eval_batch_size)")
    parser.add_argument("--data-dir", metavar="D", help="where prepared data sets lie (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Prints the result; returns 0."""
    from googlenet_jax.data.mesh import create_mesh, replicate
    from googlenet_jax.data.sources import load_source
    from googlenet_jax.errors import UserError
    from googlenet_jax.evaluation.evaluate import evaluate_source, make_eval_step
    from googlenet_jax.training.process import prepare, say_settings
    from googlenet_jax.training.run import load_run

    prepare()
    trained = load_run(args.run, args.weights, args.step)
    data, mesh = trained.config["data"], create_mesh()
    source = load_source(data["name"], args.split or data["eval_splits"][0], args.data_dir or data["dir"] or None)
    if source.num_classes != trained.model.num_classes:
        raise UserError(
            f"{source.name} has {source.num_classes} classes, the run's model {trained.model.num_classes}: not the run's data set"
        )
    say_settings()
    metrics = evaluate_source(
        make_eval_step(trained.model, trained.preprocessing, mesh),
        replicate(trained.variables, mesh),
        source,
        batch_size=trained.config["eval_batch_size"] if args.batch_size is None else args.batch_size,
        preprocessing=trained.preprocessing,
        mesh=mesh,
        threads=data["threads"],
        progress=sys.stderr.isatty(),
    )
    result = {"run": args.run, "step": trained.step, "weights": trained.weights, "data": source.name, "split": source.split, **metrics}
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{args.run}, step {trained.step}, {trained.weights} weights, on {source.name} {source.split}\n")
    shares = [(label, f"{100 * metrics[name]:.2f} %") for label, name in (("top-1", "top1"), ("top-5", "top5")) if name in metrics]
    for label, value in (("examples", f"{metrics['examples']:,}"), ("loss", f"{metrics['loss']:.4f}"), *shares):
        print(f"{label:8}  {value:>10}")
    return 0
