"""The networks by name."""

import dataclasses
import re
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models import (
    bn_inception,
    googlenet,
    inception_small,
    inception_v2,
    inception_v3,
)
from googlenet_jax.models.layers import ACTIVATIONS, NORMALIZATIONS
from googlenet_jax.models.network import Network
from googlenet_jax.models.ops import FORMS

DTYPES = ("float16", "bfloat16", "float32", "float64")
LARGEST_WIDTH = 64.0
LARGEST_COUNT = 10**7

_MODELS: dict[str, type[Network]] = {}


def register_model(name: str, cls: type[Network]) -> None:
    """Makes `cls` a network that `create_model` and every command know as `name`.

    Args:
      name: letters, digits and underscores.
      cls: a subclass of `models.network.Network`. Its fields are its options.
    Raises:
      UserError: an impossible name or class, or a name that another class has.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise UserError(
            f"register_model: a name must be letters, digits and underscores, found {name!r}"
        )
    if not (isinstance(cls, type) and issubclass(cls, Network)):
        raise UserError(
            f"register_model: {name!r} must be a subclass of googlenet_jax.Network, found {cls!r}"
        )
    other = _MODELS.get(name, cls)
    # The same class defined once more, as where a notebook's cell is run again, takes its place.
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(
            f"register_model: {name!r} is {other.__module__}.{other.__qualname__}; choose another"
            " name"
        )
    _MODELS[name] = cls


def list_models() -> list[str]:
    """Returns the names that `create_model` takes, sorted."""
    return sorted(_MODELS)


def create_model(name: str, /, **options: Any) -> Network:
    """Makes a network, without parameters.

    Args:
      name: one of `list_models()`.
      options: `num_classes`, `dtype` (of the computation), `param_dtype`, and the network's own,
        which its class documents.
    Raises:
      UserError: an unknown name or option, or a value that the option can't have.
    """
    cls = _network(name)
    defaults = option_defaults(name)
    for option in options:
        if option not in defaults:
            raise UserError(
                f"{name} has no option {option!r}{nearest(option, defaults)}: its options are"
                f" {', '.join(defaults)}"
            )
    checked = {
        option: _checked(name, option, value, defaults[option]) for option, value in options.items()
    }
    flavour = checked.get("flavour", defaults.get("flavour", ""))
    checked = {**cls.flavours.get(flavour, {}), **checked}
    for option in ("dtype", "param_dtype"):
        checked[option] = jnp.dtype(checked.get(option, defaults[option]))
    return cls(**checked)


def option_defaults(name: str) -> dict[str, Any]:
    """Returns a network's options and their defaults, those of its first flavour where it has
    flavours.
    """
    fields = dataclasses.fields(_network(name))
    return {field.name: field.default for field in fields if field.name not in ("parent", "name")}


def model_name(model: Network) -> str:
    """Returns the name under which `create_model` makes networks of this class. Raises UserError
    where it is registered under none.
    """
    for name, network in _MODELS.items():
        if type(model) is network:
            return name
    raise UserError(f"{type(model).__qualname__} is no registered network; call register_model")


def model_options(model: Network) -> dict[str, Any]:
    """Returns the options as plain JSON values, those that are None left out:
    `create_model(model_name(model), **model_options(model))` is `model` again.
    """
    options = {option: getattr(model, option) for option in option_defaults(model_name(model))}
    options = {option: value for option, value in options.items() if value is not None}
    return options | {
        option: jnp.dtype(options[option]).name for option in ("dtype", "param_dtype")
    }


def _network(name: str) -> type[Network]:
    if name not in _MODELS:
        raise UserError(
            f"unknown model {name!r}{nearest(name, _MODELS)}: one of {', '.join(list_models())}"
        )
    return _MODELS[name]


def _checked(name: str, option: str, value: Any, default: Any) -> Any:
    """The option's value as Python's own type. Raises UserError where it can't have that value."""

    def expect(fine: bool, what: str) -> None:
        if not fine:
            raise UserError(f"{name}: option {option!r} must be {what}, found {value!r}")

    shared: dict[str, tuple[Any, ...]] = {
        "forms": FORMS,
        "activation": ACTIVATIONS,
        "normalization": NORMALIZATIONS,
    }
    choices = shared | dict(_MODELS[name].choices)
    if option in ("dtype", "param_dtype"):
        _check_dtype(name, option, value)
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy's numbers and booleans
        value = value.item()
    if option == "flavour" or option in choices:
        words = tuple(_MODELS[name].flavours) if option == "flavour" else choices[option]
        named = any(type(value) is type(word) and value == word for word in words)
        near = nearest(value, words) if isinstance(value, str) else ""
        expect(named, f"{'one of ' * (len(words) > 1)}{', '.join(map(repr, words))}{near}")
        return value
    number = isinstance(value, Real) and not isinstance(value, bool)
    if isinstance(default, bool):
        expect(isinstance(value, bool), "true or false")
        return value
    if isinstance(default, int):
        fine = number and isinstance(value, int) and 0 < value <= LARGEST_COUNT
        expect(fine, f"a positive whole number of at most {LARGEST_COUNT:,}")
        return value
    if not isinstance(default, float):  # of a user's own network
        return value
    if option in ("dropout", "aux_dropout"):
        expect(number and 0 <= value < 1, "a rate from 0 to below 1")
    elif option == "bn_momentum":
        expect(number and 0 <= value <= 1, "a number from 0 to 1")
    elif option == "width":
        fine = number and 0 < value <= LARGEST_WIDTH
        expect(fine, f"a positive number of at most {LARGEST_WIDTH:g}")
    else:
        expect(number and 0 < value < float("inf"), "a positive number")
    return value


def _check_dtype(name: str, option: str, value: Any) -> None:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in DTYPES:
        raise UserError(
            f"{name}: option {option!r} must be one of {', '.join(map(repr, DTYPES))}, found"
            f" {value!r}"
        )
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{name}: {option} float64 needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")


register_model("bn_inception", bn_inception.BNInception)
register_model("googlenet", googlenet.GoogLeNet)
register_model("googlenet_bn", googlenet.GoogLeNetBN)
register_model("googlenet_naive", googlenet.GoogLeNetNaive)
register_model("googlenet_plain", googlenet.GoogLeNetPlain)
register_model("googlenet_slim", googlenet.GoogLeNetSlim)
register_model("googlenet_torchvision", googlenet.GoogLeNetTorchvision)
register_model("inception_small", inception_small.InceptionSmall)
register_model("inception_v2", inception_v2.InceptionV2)
register_model("inception_v3", inception_v3.InceptionV3)
