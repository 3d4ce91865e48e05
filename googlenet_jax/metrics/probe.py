"""A linear probe: how far a logistic regression gets on a network's features, its weights as they
are.
"""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from googlenet_jax.data.pipeline import DEFAULT_THREADS, eval_batches
from googlenet_jax.data.preprocessing import normalize
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError
from googlenet_jax.models.endpoints import endpoints
from googlenet_jax.runtime.sharding import data_sharding, replicated, shard_batch
from googlenet_jax.weights.trained_model import TrainedModel

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe's result.

    Attributes:
      strength: scikit-learn's C, chosen on the training examples alone: of STRENGTHS the best in
        cross-validation.
      train_top1, top1: shares of the training and of the test examples that are right.
      examples: of both, in this order.
      per_class: by class, the share of its test examples that is right; None where it has none.
    """

    strength: float
    train_top1: float
    top1: float
    examples: tuple[int, int]
    per_class: dict[str, float | None]


def probe(
    trained: TrainedModel, train: Source, test: Source, *, mesh: Mesh, batch_size: int = 128
) -> Probe:
    """Fits a logistic regression to the features of `train` and tests it on `test`.

    The features are what the classifier reads of the centre crop, each brought to mean 0 and
    variance 1.

    Raises:
      UserError: weights without a preprocessing, sets of other images or classes, or one class alone to train
        on.
    """
    if trained.preprocessing is None:
        raise UserError(f"{trained.source}: doesn't say how images are prepared for it")
    if train.class_names != test.class_names:
        raise UserError(
            f"{test.name} {test.split}: its classes are not those of {train.name} {train.split}"
        )
    for each in (train, test):
        trained.images.check(trained.source, f"{each.name} {each.split}", each.channels, each.dtype)
    (x, y), (x_test, y_test) = (
        features_of(trained, source, mesh=mesh, batch_size=batch_size) for source in (train, test)
    )
    if len(np.unique(y)) < 2:
        raise UserError(f"{train.name} {train.split}: expected examples of two classes or more")
    return _fit(x, y, x_test, y_test, train.class_names)


def _fit(x: Any, y: Any, x_test: Any, y_test: Any, class_names: tuple[str, ...]) -> Probe:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = min(FOLDS, int(np.unique(y, return_counts=True)[1].min()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations: the weakest strengths separate all
        if folds > 1:
            grid = {"logisticregression__C": STRENGTHS}
            cut = StratifiedKFold(folds, shuffle=True, random_state=0)
            model = GridSearchCV(model, grid, cv=cut).fit(x, y).best_estimator_
        else:  # a class of one example can't be held out
            model.fit(x, y)
    right = model.predict(x_test) == y_test
    per_class = {
        name: float(right[y_test == label].mean()) if (y_test == label).any() else None
        for label, name in enumerate(class_names)
    }
    return Probe(
        strength=float(model[-1].C),
        train_top1=float(model.score(x, y)),
        top1=float(right.mean()),
        examples=(len(y), len(y_test)),
        per_class=per_class,
    )


def features_of(
    trained: TrainedModel, source: Source, *, mesh: Mesh, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the classifier reads of each example, float `[N, C]`, and the labels, int `[N]`."""
    preprocessing = trained.preprocessing
    assert preprocessing is not None
    model = trained.model
    whole, split = replicated(mesh), data_sharding(mesh)

    def run(variables: Any, images: Any) -> Any:
        return endpoints(
            model, variables, normalize(images, preprocessing, model.dtype), ("features",)
        )["features"]

    apply = jax.jit(run, in_shardings=(whole, split), out_shardings=whole)
    batch_size = -(-min(batch_size, len(source)) // mesh.size) * mesh.size
    rows, labels = [], []
    for batch in eval_batches(
        source,
        batch_size=batch_size,
        preprocessing=preprocessing,
        threads=DEFAULT_THREADS,
        channels=trained.images.channels,
    ):
        kept = batch["weight"] > 0
        images = shard_batch({"image": batch["image"]}, mesh)["image"]
        rows.append(np.asarray(apply(trained.variables, images), np.float64)[kept])
        labels.append(batch["label"][kept])
    return np.concatenate(rows), np.concatenate(labels)
