"""`googlenet-jax detect`: objects in pictures, or average precision over a split."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add
from googlenet_jax.errors import UserError, printable
from googlenet_jax.runtime.storage import writing

if TYPE_CHECKING:
    import numpy as np

    from googlenet_jax.detection.measures import Detections
    from googlenet_jax.detection.runs import Ensemble

SHEET = 16  # pictures on a sheet


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "detect", help="find objects in pictures, or measure a detector over a split"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="picture files")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="A,B,…",
        help="runs' folders (train's --workdir); of several, their mean for each region",
    )
    parser.add_argument(
        "--split", metavar="S", help="measure over this split of the run's data set, no pictures"
    )
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="P", help="lowest shown (default: 0.5)"
    )
    parser.add_argument("--multibox", metavar="RUN", help="a run that proposes boxes in pictures")
    parser.add_argument(
        "--box-regression", action="store_true", help="move boxes (arXiv 1311.2524)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=(
            "write pictures with boxes, names and scores here; with --split also all detections in "
            "COCO's form and in VOC's"
        ),
    )
    add(parser, "--data-dir")
    add(parser, "--json", help="print JSON alone, a line a picture")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; returns 0, or 1 where a picture could not be read."""
    if bool(args.images) == bool(args.split):
        raise UserError("detect: expected either pictures or --split, give one of the two")
    if not 0 <= args.score <= 1:
        raise UserError(f"--score: expected 0 to 1, found {args.score}")
    from googlenet_jax.detection.runs import load_ensemble
    from googlenet_jax.runtime.process import log_settings, prepare

    prepare()
    ensemble = load_ensemble([name for name in args.weights.split(",") if name])
    if args.output:
        with writing(args.output):
            args.output.mkdir(parents=True, exist_ok=True)
    log_settings()
    return _measure(args, ensemble) if args.split else _pictures(args, ensemble)


def _pictures(args: argparse.Namespace, ensemble: "Ensemble") -> int:
    from googlenet_jax.detection.detector import Detector
    from googlenet_jax.detection.drawing import draw_detections, save_picture
    from googlenet_jax.evaluation.pictures import read_picture

    pictures, failed = [], 0
    for path in args.images:  # before anything is compiled
        try:
            pictures.append((path, read_picture(path)))
        except UserError as error:
            failed += 1
            if args.json:
                print(json.dumps({"image": path, "error": str(error)}))
            print(f"googlenet-jax: {printable(str(error))}", file=sys.stderr)
    if not pictures:
        return 1
    detector = Detector(
        ensemble, args.multibox, box_regression=args.box_regression, data_dir=args.data_dir
    )
    for path, picture in pictures:
        found = _above(detector(picture), args.score)
        _print(path, found, ensemble.class_names, args.json)
        if args.output:
            drawn = draw_detections(picture, found, ensemble.class_names)
            target = args.output / f"{Path(path).stem}.detections.png"
            save_picture(target, drawn)
            if not args.json:
                print(f"  wrote {target}")
    return 1 if failed else 0


def _measure(args: argparse.Namespace, ensemble: "Ensemble") -> int:
    from googlenet_jax.detection.detector import measure_split
    from googlenet_jax.detection.exchange import write_detections
    from googlenet_jax.detection.sources import load_detection_source

    data = ensemble.config["data"]
    source = load_detection_source(data["name"], args.split, args.data_dir or data["dir"] or None)
    if source.class_names != ensemble.class_names:
        raise UserError(f"{source.name}: its classes are not the run's")
    result, split, found = measure_split(
        ensemble, source, box_regression=args.box_regression, data_dir=args.data_dir
    )
    files: list[Path] = []
    if args.output:
        _draw_sheet(args, ensemble, source, found)
        names = source.names()
        about = (args.split, source.class_names, names, split.sizes)
        files = write_detections(args.output, *about, split.truth, found)
    if args.json:
        print(json.dumps(result))
    else:
        print(_for_people(result))
        if args.output:
            print(f"\nwrote {args.output / 'sheet.png'}")
            for file in files:
                print(f"wrote {file}")
    return 0


def _draw_sheet(
    args: argparse.Namespace, ensemble: "Ensemble", source: Any, found: "list[Detections]"
) -> None:
    from googlenet_jax.detection.drawing import draw_detections, draw_sheet, save_picture

    pictures: list[np.ndarray] = []
    for example, each in zip(source.read(range(min(SHEET, len(source)))), found, strict=False):
        shown = _above(each, args.score)
        truth = example["objects"].boxes
        pictures.append(draw_detections(example["image"], shown, ensemble.class_names, truth))
    save_picture(args.output / "sheet.png", draw_sheet(pictures))


def _above(found: "Detections", score: float) -> "Detections":
    """The detections of at least that score, the best first."""
    order = (-found.scores).argsort(kind="stable")
    return type(found)(*(part[order][found.scores[order] >= score] for part in found))


def _print(path: str, found: "Detections", names: tuple[str, ...], as_json: bool) -> None:
    rows = [
        {"class": names[label], "score": round(float(score), 6), "box": [round(x, 2) for x in box]}
        for box, label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True)
    ]
    if as_json:
        print(json.dumps({"image": path, "detections": rows}, ensure_ascii=False), flush=True)
        return
    print(f"{path}: {len(rows)} found" if rows else f"{path}: nothing found")
    for row in rows:
        top, left, bottom, right = row["box"]
        where = f"top {top:g}, left {left:g}, bottom {bottom:g}, right {right:g}"
        print(f"  {row['class']:12}  {row['score']:.3f}  {where}")


def _for_people(result: dict[str, Any]) -> str:
    columns = ("voc2007", "voc2010", "ilsvrc", "coco")

    def line(label: str, values: dict[str, float | None], names: Sequence[str]) -> str:
        shares = (values[name] for name in names)
        return f"{label:28}" + "".join(
            f"{100 * x:9.2f}" if x is not None else f"{'–':>9}" for x in shares
        )

    def heading(label: str, names: Sequence[str]) -> str:
        return f"{label:28}" + "".join(f"{name:>9}" for name in names)

    lines = [f"{result['data']} {result['split']}: {result['images']:,} images", ""]
    lines.append(heading("mAP, %", columns))
    lines += [line(row["networks"], row, columns) for row in result["table"]]
    lines += ["", heading("AP of all together, %", columns[:3])]
    lines += [line(f"  {name}", values, columns[:3]) for name, values in result["classes"].items()]
    return "\n".join(lines)
