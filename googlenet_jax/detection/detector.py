"""An ensemble of region classifiers as a detector: in pictures, and measured over a split."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from googlenet_jax.detection import measures
from googlenet_jax.detection.box_regression import (
    Regression,
    collect,
    fit,
    load_regression,
    moved_by,
    save_regression,
)
from googlenet_jax.detection.classifier import Scorer, detect
from googlenet_jax.detection.evaluate import MEASURES, Split, examples, open_split, score_split
from googlenet_jax.detection.measures import Detections
from googlenet_jax.detection.multibox import Proposer, load_proposer
from googlenet_jax.detection.proposals import MULTIBOX, SelectiveSearch
from googlenet_jax.detection.rcnn import settings
from googlenet_jax.detection.runs import Ensemble
from googlenet_jax.detection.selective_search import selective_search
from googlenet_jax.detection.sources import DetectionSource, load_detection_source
from googlenet_jax.errors import UserError
from googlenet_jax.runtime.sharding import create_mesh, replicate

ROUND = 512  # an image's boxes are padded to a multiple of so many, so that few shapes compile


class Detector:
    """Called with a picture, uint8 [H, W, 3], it returns its Detections."""

    def __init__(
        self,
        ensemble: Ensemble,
        multibox: str | None = None,
        *,
        box_regression: bool = False,
        data_dir: str | None = None,
    ) -> None:
        """Proposes boxes as the first run was trained with; `multibox` is the run for "multibox".

        Raises:
          UserError: the run needs MultiBox's proposals and none is given.
        """
        self._mesh = create_mesh()
        self._ensemble, self._settings = ensemble, settings(ensemble.config)
        self._scorer = Scorer(ensemble.classifiers, self._settings, self._mesh, box_regression)
        self._variables = replicate(ensemble.variables, self._mesh)
        self._regressions: list[Regression] = []
        if box_regression:
            self._regressions = regressions_of(ensemble, data_dir)
        self._searches: list[SelectiveSearch] = []
        self._proposer: tuple[Proposer, Any] | None = None
        for name in ensemble.config["proposals"]["names"]:
            if name != MULTIBOX:
                self._searches.append(SelectiveSearch.from_name(name))
            elif multibox is None:
                raise UserError("--multibox: the run's proposals are MultiBox's too; give its run")
            else:
                self._proposer = load_proposer(multibox, self._mesh)

    def propose(self, picture: np.ndarray) -> np.ndarray:
        """Returns the boxes [P, 4] that are looked at."""
        most = self._ensemble.config["proposals"]["most"] or None
        sets = [
            selective_search(
                picture,
                superpixel_scale=search.superpixel_scale,
                width=search.width,
                smallest_side=search.smallest_side,
            )[:most]
            for search in self._searches
        ]
        if self._proposer is not None:
            proposer, variables = self._proposer
            sets.append(proposer.propose(variables, [picture])[0][0][:most])
        return np.concatenate(sets)

    def __call__(self, picture: np.ndarray) -> Detections:
        """Finds objects in a picture."""
        boxes = self.propose(picture)
        scored = self._scorer.dispatch(self._variables, picture, boxes)()
        if self._regressions:
            everyone = range(len(self._regressions))
            boxes = moved_by(boxes, scored.features, self._regressions, everyone)
        padded = max(1, math.ceil(boxes.shape[-2] / ROUND)) * ROUND
        averaged = scored.probabilities.mean(axis=0)
        return detect(boxes, averaged, picture.shape[:2], self._settings, padded)


def regressions_of(ensemble: Ensemble, data_dir: str | None = None) -> list[Regression]:
    """Returns each network's box regression, fitted to the run's training split on first use.

    Raises:
      UserError: the training split or its proposals are not there, or nothing can be fitted.
    """
    kept = [load_regression(name) for name in ensemble.names]
    known = [each for each in kept if each is not None]
    if len(known) == len(kept):
        return known
    config, mesh = ensemble.config, create_mesh()
    data, proposals = config["data"], config["proposals"]
    source = load_detection_source(
        data["name"], data["train_split"], data_dir or data["dir"] or None
    )
    split = open_split(source, proposals["names"], proposals["most"])
    scorer = Scorer(ensemble.classifiers, settings(config), mesh, features=True)
    scored = scorer.over(replicate(ensemble.variables, mesh), examples(split))
    found = zip(split.boxes, (each.features for each in scored), split.truth, strict=True)
    pairs = collect(found, len(split.boxes), len(ensemble.names))
    fitted = [fit(each, len(ensemble.class_names)) for each in pairs]
    for name, regression in zip(ensemble.names, fitted, strict=True):
        save_regression(name, regression)
    return fitted


def measure_split(
    ensemble: Ensemble,
    source: DetectionSource,
    *,
    box_regression: bool = False,
    data_dir: str | None = None,
) -> tuple[dict[str, Any], Split, list[Detections]]:
    """Measures an ensemble over a split, in one pass over its proposals.

    Returns:
      Plain JSON values: "table", a row for each network alone and for the first 1 … N together,
      with mAP in VOC2007's, VOC2010's, ILSVRC's and COCO's way; "classes", the AP of all
      together; and COCO's figures. Then the split, and the detections of all together.
    """
    mesh, config = create_mesh(), ensemble.config
    split = open_split(source, config["proposals"]["names"], config["proposals"]["most"])
    regressions = regressions_of(ensemble, data_dir) if box_regression else []
    scorer = Scorer(ensemble.classifiers, settings(config), mesh, features=box_regression)
    alone = [(i,) for i in range(len(ensemble.names))]
    groups = list(dict.fromkeys([*alone, *ensemble.prefixes]))
    scores = score_split(
        scorer,
        replicate(ensemble.variables, mesh),
        split,
        groups=groups,
        regressions=regressions,
    )
    rows = [_row(ensemble, split, group, scores.detections[group]) for group in groups]
    everyone = scores.detections[ensemble.prefixes[-1]]
    count = source.num_classes
    per_class = {name: ap(split.truth, everyone, count) for name, ap in MEASURES.items()}
    classes = {
        name: {measure: _json(values[i]) for measure, values in per_class.items()}
        for i, name in enumerate(source.class_names)
    }
    result = {
        "data": source.name,
        "split": source.split,
        "images": len(split.boxes),
        "proposals": list(config["proposals"]["names"]),
        "networks": list(ensemble.names),
        "table": rows,
        "classes": classes,
        "coco": {k: _json(v) for k, v in measures.coco(split.truth, everyone, count).items()},
    }
    return result, split, everyone


def _row(
    ensemble: Ensemble, split: Split, group: Sequence[int], found: Sequence[Detections]
) -> dict[str, Any]:
    count = split.source.num_classes
    row: dict[str, Any] = {
        "networks": f"network {group[0] + 1}" if len(group) == 1 else f"mean of {len(group)}",
        "members": [ensemble.names[i] for i in group],
    }
    for name, measure in MEASURES.items():
        row[name] = _json(measures.mean(measure(split.truth, found, count)))
    return row | {"coco": _json(measures.coco(split.truth, found, count)["ap"])}


def _json(value: float) -> float | None:
    """NaN, which JSON has not, becomes None."""
    return None if math.isnan(value) else round(float(value), 6)
