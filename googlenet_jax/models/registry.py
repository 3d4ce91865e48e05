"""The networks by name."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models import googlenet
from googlenet_jax.models.googlenet import Network

_MODELS: dict[str, type[Network]] = {
    "googlenet": googlenet.GoogLeNet,
    "googlenet_bn": googlenet.GoogLeNetBN,
    "googlenet_naive": googlenet.GoogLeNetNaive,
    "googlenet_plain": googlenet.GoogLeNetPlain,
    "googlenet_slim": googlenet.GoogLeNetSlim,
    "googlenet_torchvision": googlenet.GoogLeNetTorchvision,
}


def list_models() -> list[str]:
    """Returns the names that `create_model` takes, sorted."""
    return sorted(_MODELS)


def create_model(name: str, /, **options: Any) -> Network:
    """Makes a network, without parameters.

    Args:
      name: one of `list_models()`.
      options: `num_classes`, `dtype` (of the computation), `param_dtype`, and the network's own, which its class documents.
    Raises:
      UserError: an unknown name or option, or a value that the option can't have.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}{nearest(name, _MODELS)}: one of {', '.join(list_models())}")
    fields = option_defaults(name)
    for option, value in options.items():
        if option not in fields:
            raise UserError(f"{name} has no option {option!r}{nearest(option, fields)}: its options are {', '.join(fields)}")
        _check_option(name, option, value, fields[option])
    dtypes = {option: jnp.dtype(options.get(option, fields[option])) for option in ("dtype", "param_dtype")}
    return _MODELS[name](**options | dtypes)


def option_defaults(name: str) -> dict[str, Any]:
    """Returns a network's options and their defaults."""
    fields = dataclasses.fields(_MODELS[name])
    return {field.name: field.default for field in fields if field.name not in ("parent", "name")}


def model_name(model: Network) -> str:
    """Returns the name under which `create_model` makes networks of this class."""
    return next(name for name, network in _MODELS.items() if type(model) is network)


def model_options(model: Network) -> dict[str, Any]:
    """Returns every option as a plain JSON value: `create_model(model_name(model), **model_options(model))` is `model` again."""
    options = {option: getattr(model, option) for option in option_defaults(model_name(model))}
    return options | {option: jnp.dtype(options[option]).name for option in ("dtype", "param_dtype")}


def _check_option(name: str, option: str, value: Any, default: Any) -> None:
    """Raises UserError where an option can't have that value."""

    def expect(fine: bool, what: str) -> None:
        if not fine:
            raise UserError(f"{name}: option {option!r} must be {what}, found {value!r}")

    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option in ("dtype", "param_dtype"):
        _check_dtype(name, option, value)
    elif option == "stem":
        stems = _MODELS[name].min_sizes
        expect(isinstance(value, str) and value in stems, "one of " + ", ".join(map(repr, stems)))
    elif isinstance(default, bool):
        expect(isinstance(value, bool), "true or false")
    elif isinstance(default, int):
        expect(number and isinstance(value, int) and value > 0, "a positive whole number")
    elif option in ("dropout", "aux_dropout"):
        expect(number and 0 <= value < 1, "a rate from 0 to below 1")
    elif option == "bn_momentum":
        expect(number and 0 <= value <= 1, "a number from 0 to 1")
    else:
        expect(number and 0 < value < float("inf"), "a positive number")


def _check_dtype(name: str, option: str, value: Any) -> None:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{name}: option {option!r} must be a float type such as 'float32' or 'bfloat16', found {value!r}")
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{name}: {option} float64 needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")
