"""GoogLeNet and the Inception family in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from googlenet_jax import metrics, weights
    from googlenet_jax.data.augment import register_augmentation
    from googlenet_jax.data.examples import Examples
    from googlenet_jax.evaluation.metrics import register_metric
    from googlenet_jax.evaluation.set_metrics import register_set_metric
    from googlenet_jax.interpretability.explain import explain
    from googlenet_jax.models.endpoints import endpoints
    from googlenet_jax.models.folding import fold_batch_norm
    from googlenet_jax.models.network import Network, Output
    from googlenet_jax.models.registry import create_model, list_models, register_model
    from googlenet_jax.training.callbacks import Callback, register_callback
    from googlenet_jax.training.loop import train
    from googlenet_jax.training.losses import register_loss
    from googlenet_jax.training.optimizer import register_optimizer, register_schedule
    from googlenet_jax.training.rate_finder import find_learning_rate
    from googlenet_jax.training.task import register_task
    from googlenet_jax.training.trackers import register_writer
    from googlenet_jax.verification.verify import verify
    from googlenet_jax.weights.load import load
    from googlenet_jax.weights.safetensors import save_weights
    from googlenet_jax.weights.trained_model import TrainedModel

# Public name -> where it lives: imported on first use, so that `import googlenet_jax` costs
# nothing.
_HOMES = {
    "find_learning_rate": "googlenet_jax.training.rate_finder",
    "Examples": "googlenet_jax.data.examples",
    "register_set_metric": "googlenet_jax.evaluation.set_metrics",
    "register_writer": "googlenet_jax.training.trackers",
    "register_callback": "googlenet_jax.training.callbacks",
    "Callback": "googlenet_jax.training.callbacks",
    "Network": "googlenet_jax.models.network",
    "Output": "googlenet_jax.models.network",
    "create_model": "googlenet_jax.models.registry",
    "list_models": "googlenet_jax.models.registry",
    "register_model": "googlenet_jax.models.registry",
    "endpoints": "googlenet_jax.models.endpoints",
    "explain": "googlenet_jax.interpretability.explain",
    "fold_batch_norm": "googlenet_jax.models.folding",
    "save_weights": "googlenet_jax.weights.safetensors",
    "register_augmentation": "googlenet_jax.data.augment",
    "register_loss": "googlenet_jax.training.losses",
    "register_metric": "googlenet_jax.evaluation.metrics",
    "register_optimizer": "googlenet_jax.training.optimizer",
    "register_schedule": "googlenet_jax.training.optimizer",
    "register_task": "googlenet_jax.training.task",
    "train": "googlenet_jax.training.loop",
    "load": "googlenet_jax.weights.load",
    "verify": "googlenet_jax.verification.verify",
    "TrainedModel": "googlenet_jax.weights.trained_model",
}

__all__ = [
    "Callback",
    "Examples",
    "Network",
    "Output",
    "TrainedModel",
    "create_model",
    "endpoints",
    "explain",
    "find_learning_rate",
    "fold_batch_norm",
    "list_models",
    "load",
    "metrics",
    "register_augmentation",
    "register_callback",
    "register_loss",
    "register_metric",
    "register_model",
    "register_optimizer",
    "register_schedule",
    "register_set_metric",
    "register_task",
    "register_writer",
    "save_weights",
    "train",
    "verify",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("metrics", "weights"):
        return importlib.import_module(f"googlenet_jax.{name}")
    raise AttributeError(f"module 'googlenet_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
