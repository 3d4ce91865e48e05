"""Names for what users add: losses, metrics, optimizers, augmentations, tasks."""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from googlenet_jax.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    A config holds the name; what is registered stays with the process that registered it.
    """

    def __init__(self, kind: str, things: dict[str, T]) -> None:
        """`kind` is what error messages call one of them, such as "loss"."""
        self._kind, self._things = kind, dict(things)

    def register(self, name: str, thing: T) -> None:
        """Adds one, or replaces an earlier definition of the same one, as a notebook's cell does.

        Raises UserError where the name belongs to another.
        """
        if not isinstance(name, str) or not name:
            raise UserError(f"register {self._kind}: expected a name, found {name!r}")
        if name in self._things and not _is_redefined(self._things[name], thing):
            raise UserError(
                f"register {self._kind}: there is a {name!r} already; choose another name"
            )
        self._things[name] = thing

    def __getitem__(self, name: str) -> T:
        """Returns what has that name; raises UserError, with the nearest name, where nothing
        has.
        """
        if name not in self._things:
            raise UserError(
                f"expected one of {', '.join(map(repr, self))}, found {name!r}"
                f"{nearest(name, self)}; --import MODULE imports your own registrations"
            )
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))


def _is_redefined(old: Any, new: Any) -> bool:
    """Whether both are one definition: of one name in one module, or in one file, which was read as
    a module and as a config; of a dataclass, such as a `TaskKind`, its fields' functions.
    """
    if type(old) is type(new) and dataclasses.is_dataclass(new) and not isinstance(new, type):
        names = [field.name for field in dataclasses.fields(new)]
        return all(_is_redefined(getattr(old, name), getattr(new, name)) for name in names)
    if not (hasattr(old, "__qualname__") and hasattr(new, "__qualname__")):
        return old is new
    same_place = old.__module__ == new.__module__ or None is not _file(old) == _file(new)
    return same_place and old.__qualname__ == new.__qualname__


def _file(thing: Any) -> str | None:
    """The file that a function or class was defined in; None where that isn't known."""
    module = vars(sys.modules.get(thing.__module__, object))
    file = getattr(thing, "__globals__", module).get("__file__")
    return file and os.path.realpath(file)


def arguments(
    function: Callable[..., Any],
    what: str,
    group: str,
    fields: Mapping[str, tuple[Any, Any]],
    options: Mapping[str, Any],
    own: Collection[str],
) -> dict[str, Any]:
    """Returns the keyword arguments that a config's group of fields gives a registered function.

    Args:
      what: what error messages call the function, such as "loss 'focal'".
      group: the config's, such as "loss": its general fields stand in it, the function's own in
        `options`.
      fields: name -> (value, default). The function gets those that it takes.
      options: name -> value. The function must take every one.
      own: parameters that the caller gives, and no config sets.
    Raises:
      UserError: a field that the function has no use for although it is not at its default, or an
        option that it does not take.
    """
    parameters = inspect.signature(function).parameters.values()
    takes = {
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    for name, (value, default) in fields.items():
        if name not in takes and value != default:
            raise UserError(
                f"{group}.{name}: {what} has no use for it; leave it at {default!r}, found"
                f" {value!r}"
            )
    for name in options:
        if name in fields:
            raise UserError(f"{group}.options.{name}: set {group}.{name} instead")
        if name not in takes - set(own):
            known = sorted(takes - set(own) - fields.keys())
            raise UserError(
                f"{group}.options.{name}: {what} has no such option{nearest(name, known)}; its"
                f" options are {', '.join(known) or 'none'}"
            )
    return {name: value for name, (value, _) in fields.items() if name in takes} | dict(options)


def given_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, to be called with `step=…`, which it gets where it takes it."""
    if "step" in inspect.signature(function).parameters:
        return function
    return lambda *args, step: function(*args)
