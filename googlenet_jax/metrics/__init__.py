"""Measures of generated images: FID and its relatives."""

from googlenet_jax.metrics.distance import frechet_distance
from googlenet_jax.metrics.features import InceptionFeatures, inception_features
from googlenet_jax.metrics.kernel import cubic, gaussian, kernel_distance
from googlenet_jax.metrics.moments import Moments, Statistics, merge_statistics, statistics_of
from googlenet_jax.metrics.neighbours import neighbourhoods
from googlenet_jax.metrics.resize import resize
from googlenet_jax.metrics.scores import FID, KID, SFID, InceptionScore, PrecisionRecall, update
from googlenet_jax.metrics.stored import read_statistics, write_statistics

__all__ = [
    "FID",
    "KID",
    "SFID",
    "InceptionFeatures",
    "InceptionScore",
    "Moments",
    "PrecisionRecall",
    "Statistics",
    "cubic",
    "frechet_distance",
    "gaussian",
    "inception_features",
    "kernel_distance",
    "merge_statistics",
    "neighbourhoods",
    "read_statistics",
    "resize",
    "statistics_of",
    "update",
    "write_statistics",
]
