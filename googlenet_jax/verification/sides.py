"""The two sides of a comparison: anything that can be run, with its weights by name."""

import contextlib
import copy
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import torch
from torch import Tensor, nn

from googlenet_jax.errors import UserError, nearest, one_line
from googlenet_jax.verification import from_jax, from_torch
from googlenet_jax.verification.align import Layouts
from googlenet_jax.verification.graph import Graph
from googlenet_jax.verification.lift import lift


class Side(Protocol):
    """Something that runs.

    Attributes:
      title: what it is called. layouts: how its library lays kernels out; see `align.into_leaf`.
      precision: of its numbers.
    """

    title: str
    layouts: Layouts
    precision: str

    def trace(self, images: np.ndarray) -> tuple[Graph, dict[str, Tensor]]:
        """The graph on images [N, H, W, C] and what the side itself computed, by output."""

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites weights by name."""


class TorchSide:
    """A `torch.nn.Module`, in evaluation; auxiliary heads answer all the same."""

    layouts: Layouts = {4: (2, 3, 1, 0), 2: (1, 0)}  # noqa: RUF012

    def __init__(self, module: nn.Module, dtype: str) -> None:
        self.module = from_torch.layers_of(module).to(getattr(torch, dtype))
        self.title = type(self.module).__name__
        self.dtype, self.precision = getattr(torch, dtype), dtype
        self.channels_last = False  # found out where it first runs

    def entries(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def pixels(self, images: np.ndarray) -> Tensor:
        """Images [N, H, W, C] as the module takes them: [N, C, H, W], or as they are."""
        turned = images.ndim == 4 and not self.channels_last
        given = images.transpose(0, 3, 1, 2) if turned else images
        return torch.from_numpy(np.array(given, np.float64, order="C")).to(self.dtype)

    @contextlib.contextmanager
    def evaluating(self, heads: bool) -> Iterator[None]:
        """Modes and buffers are put back afterwards. With `heads` the module itself trains, so that
        its auxiliary heads answer, while batch norm and dropout do not.
        """
        buffers = [(each, each.detach().clone()) for each in self.module.buffers()]
        kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
        try:
            with self._mode(
                heads, lambda each: isinstance(each, kinds) or type(each).__name__ == "DropPath"
            ):
                yield
        finally:
            for buffer, value in buffers:
                buffer.detach().copy_(value)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Training without dropout; the modes are put back afterwards."""
        drops = nn.modules.dropout._DropoutNd
        with self._mode(True, lambda each: isinstance(each, drops)), from_torch.WithoutDropout():
            yield

    @contextlib.contextmanager
    def _mode(self, train: bool, still: Callable[[nn.Module], bool]) -> Iterator[None]:
        before = {each: each.training for each in self.module.modules()}
        self.module.train(train)
        for each in self.module.modules():
            if still(each):
                each.eval()
        try:
            yield
        finally:
            for each, mode in before.items():
                each.training = mode

    def trace(self, images: np.ndarray) -> tuple[Graph, dict[str, Tensor]]:
        """See `Side`. Raises UserError where it runs on images of neither layout."""
        errors: list[Exception] = []
        first = self.channels_last
        for channels_last in (first, not first) if images.ndim == 4 else (first,):
            self.channels_last = channels_last
            try:
                heads, drops = self._heads(images)
                with self.evaluating(heads), from_torch.WithoutDropout(drops, settled=heads):
                    graph, outputs = from_torch.trace_torch(
                        self.module, self.pixels(images), channels_last
                    )
                return lift(graph), outputs
            except UserError:
                raise
            except Exception as error:
                errors.append(error)
        text = one_line(errors[0], 200)
        self.channels_last = first
        shape = list(self.pixels(images).shape)
        raise UserError(
            f"{self.title} does not run on inputs {shape}: {type(errors[0]).__name__}: {text}"
        ) from errors[0]

    def _heads(self, images: np.ndarray) -> tuple[bool, frozenset[Any]]:
        """Whether training gives outputs that evaluation does not, and evaluation's own stay; and
        the lines whose dropout acts in evaluation, which is a fault to be seen.
        """
        found = {}
        drops: frozenset[Any] = frozenset()
        for heads in (False, True):
            mode = from_torch.WithoutDropout(drops if heads else None, settled=heads)
            try:
                with self.evaluating(heads), torch.no_grad(), mode:
                    torch.manual_seed(0)
                    found[heads] = from_torch.named(self.module(self.pixels(images)))
            except UserError:
                raise
            except Exception:
                if not heads:
                    raise
                return False, drops
            drops = drops if heads else frozenset(mode.active)
        more = found[True].keys() > found[False].keys()
        same = drops or all(
            torch.allclose(found[True][n].double(), v.double(), 1e-4, 1e-4, equal_nan=True)
            for n, v in found[False].items()
            if n in found[True]
        )
        return bool(more and same), drops

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """See `Side`."""
        entries = self.entries()
        with torch.no_grad():
            for name, value in values.items():
                entries[name].copy_(value.reshape(entries[name].shape))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """All values and gradients are put back afterwards. (A copy of the module would do where no
        function of it held on to the module itself.)
        """
        values = {name: value.detach().clone() for name, value in self.entries().items()}
        gradients = [(parameter, parameter.grad) for parameter in self.module.parameters()]
        try:
            yield
        finally:
            self.assign(values)
            for parameter, gradient in gradients:
                parameter.grad = gradient


class JaxSide:
    """A function of (tree of arrays, inputs [N, H, W, C]).

    Attributes:
      train: the function in training, (tree, inputs) → (outputs by name, new tree), where there is
        one; see `training`.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        parameters: Any,
        dtype: str,
        title: str = "",
        layouts: Layouts | None = None,
        channels_last: bool = True,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.function, self.title = function, title or getattr(function, "__name__", "function")
        self.precision, self.channels_last = dtype, channels_last
        self.layouts = {4: (0, 1, 2, 3), 2: (0, 1)} if layouts is None else layouts
        self.names = dict(names or {})  # our leaf → PyTorch's name of it, where it is known
        self.parameters = jax.tree.map(self._cast, parameters)
        self._last: tuple[np.ndarray, Graph, dict[str, Tensor]] | None = None

    def _cast(self, leaf: Any) -> Any:
        array = np.asarray(leaf)
        is_float = jax.numpy.issubdtype(array.dtype, np.floating)
        return array.astype(jax.numpy.dtype(self.precision)) if is_float else array

    def given(self, images: np.ndarray) -> np.ndarray:
        """Images [N, H, W, C] as the function takes them."""
        turned = images.ndim == 4 and not self.channels_last
        return self._cast(images.transpose(0, 3, 1, 2) if turned else images)

    def trace(self, images: np.ndarray) -> tuple[Graph, dict[str, Tensor]]:
        """See `Side`. Raises UserError where the function does not run on them."""
        if self._last is None or not np.array_equal(self._last[0], images):
            self._last = (images, *self._traced(images))
        _, graph, outputs = self._last
        return graph.copy()[0], dict(outputs)

    def _traced(self, images: np.ndarray) -> tuple[Graph, dict[str, Tensor]]:
        given = self.given(images)
        try:
            graph = from_jax.trace_jax(self.function, self.parameters, given, self.channels_last)
            made = jax.jit(self.function)(self.parameters, given)
        except UserError:
            raise
        except Exception as error:
            text = one_line(error, 200)
            raise UserError(
                f"{self.title} does not run on inputs {list(given.shape)}: "
                f"{type(error).__name__}: {text}"
            ) from error
        flat = jax.tree_util.tree_flatten_with_path(made)[0]
        outputs = {from_jax.output_label(path): from_jax.to_torch(value) for path, value in flat}
        return lift(graph), {n: v for n, v in outputs.items() if n in graph.outputs}

    def nudged(self, change: Callable[[Tensor], Tensor]) -> "JaxSide":
        """A copy with every weight changed."""
        made = copy.copy(self)
        made._last = None
        made.parameters = jax.tree.map(
            lambda leaf: from_jax.to_numpy(change(from_jax.to_torch(leaf))), self.parameters
        )
        return made

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """See `Side`."""

        def new(path: Any, leaf: Any) -> Any:
            name = from_jax.path_name(path)
            if name not in values:
                return leaf
            return self._cast(from_jax.to_numpy(values[name]).reshape(np.shape(leaf)))

        self.parameters = jax.tree_util.tree_map_with_path(new, self.parameters)
        self._last = None


def as_side(given: Any, dtype: str) -> Side:
    """Anything that can be compared as a side.

    Args:
      given: a `torch.nn.Module`; (function, parameters); (linen module, variables); an Equinox or
        NNX module, or any other callable that is a tree of arrays; a Keras model on JAX; a
        `TrainedModel`.
    Raises:
      UserError: it is none of these.
    """
    if hasattr(given, "trace") and hasattr(given, "assign"):
        return given
    if isinstance(given, nn.Module):
        return TorchSide(given, dtype)
    if hasattr(given, "model") and hasattr(given, "variables"):
        given = (given.model, given.variables)
    if isinstance(given, tuple) and len(given) == 2:
        return _pair_side(*given, dtype)
    kinds = {base.__module__.split(".")[0] for base in type(given).__mro__}
    if "keras" in kinds:
        return _keras_side(given, dtype)
    if "flax" in kinds and hasattr(given, "iter_modules"):
        return _nnx_side(given, dtype)
    if callable(given) and jax.tree.leaves(given):
        return _tree_side(given, dtype)
    raise UserError(
        "verify: expected a torch.nn.Module, (function, parameters), (linen module, variables), or "
        f"an Equinox, NNX or Keras model, found {type(given).__name__}"
    )


def _pair_side(function: Any, parameters: Any, dtype: str) -> JaxSide:
    import flax.linen

    from googlenet_jax.models.network import Network

    if isinstance(function, Network):
        return network_side(function, parameters, dtype)
    if isinstance(function, flax.linen.Module):
        apply = function.apply
        return JaxSide(lambda v, x: apply(v, x), parameters, dtype, type(function).__name__)
    return JaxSide(function, parameters, dtype)


def network_side(model: Any, variables: Mapping[str, Any], dtype: str) -> JaxSide:
    """One of this package's networks in evaluation, its auxiliary heads answering."""
    from googlenet_jax.models.registry import model_name
    from googlenet_jax.weights.pytorch import torch_names

    try:
        names = {"/".join(path): name for path, name in torch_names(model).items()}
    except UserError:  # a network of the user's own without such names
        names = {}
    model = model.clone(dtype=dtype, param_dtype=dtype)

    def run(variables: Any, images: Any) -> Any:
        output = model.apply(variables, images, train=False, aux=True)
        return {"logits": output.logits, **output.aux_logits}

    trees = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    side = JaxSide(run, trees, dtype, model_name(model), names=names)
    side.model = model  # type: ignore[attr-defined]
    return side


def _nnx_side(module: Any, dtype: str) -> JaxSide:
    from flax import nnx

    module.eval()
    graph, state = nnx.split(module)
    arrays = nnx.to_pure_dict(state)

    def run(arrays: Any, inputs: Any) -> Any:
        filled = nnx.state(nnx.merge(graph, state))
        nnx.replace_by_pure_dict(filled, arrays)
        return nnx.merge(graph, filled)(inputs)

    return JaxSide(run, arrays, dtype, type(module).__name__)


def _tree_side(module: Any, dtype: str) -> JaxSide:
    """A callable tree such as an Equinox module: of one example [C, H, W], mapped over the batch."""
    is_array = lambda leaf: isinstance(leaf, (np.ndarray, jax.Array))  # noqa: E731
    leaves, structure = jax.tree.flatten(module)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(module)[0]]
    names = [from_jax.path_name(path) for path in paths]
    arrays = {n: leaf for n, leaf in zip(names, leaves, strict=True) if is_array(leaf)}

    def run(arrays: Any, inputs: Any) -> Any:
        filled = [arrays.get(n, leaf) for n, leaf in zip(names, leaves, strict=True)]
        return jax.vmap(jax.tree.unflatten(structure, filled))(inputs)

    layouts: Layouts = {4: (2, 3, 1, 0), 2: (1, 0)}
    return JaxSide(run, arrays, dtype, type(module).__name__, layouts, channels_last=False)


def _keras_side(model: Any, dtype: str) -> JaxSide:
    import keras

    if keras.backend.backend() != "jax":
        raise UserError(
            "verify reads a Keras model's operations from JAX: set KERAS_BACKEND=jax, found "
            f"{keras.backend.backend()}"
        )
    trained = {v.path: np.asarray(v.value) for v in model.trainable_variables}
    other = {v.path: np.asarray(v.value) for v in model.non_trainable_variables}

    def run(variables: Any, inputs: Any) -> Any:
        one = [variables[v.path] for v in model.trainable_variables]
        two = [variables[v.path] for v in model.non_trainable_variables]
        return model.stateless_call(one, two, inputs, training=False)[0]

    side = JaxSide(run, trained | other, dtype, model.name)
    # Keras's batch norm takes float64 to float32.
    side.precision = "float32" if dtype == "float64" else dtype
    return side


# --------------------------------------------------------------------------------------- from files


def load_object(where: str, option: str, num_classes: int | None = None) -> Any:
    """Runs the file of FILE.py:NAME, as the user's own code, and gives what NAME is: an object, or
    what a class or a function without required arguments makes (`num_classes` is passed where it
    takes that).

    Raises UserError naming what is missing or what the file or class raised.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not name or not path.is_file():
        raise UserError(f"{option}: expected FILE.py:NAME with a file that exists, found {where!r}")
    code = _run_file(path, where, option)
    if not hasattr(code, name):
        hint = nearest(name, [each for each in vars(code) if not each.startswith("_")])
        raise UserError(f"{option}: {file} has no {name!r}{hint}")
    made = getattr(code, name)
    if isinstance(made, type) or (inspect.isfunction(made) and not isinstance(made, nn.Module)):
        try:
            takes = "num_classes" in inspect.signature(made).parameters
            made = made(num_classes=num_classes) if takes and num_classes else made()
        except Exception as error:
            text = one_line(error, 200)
            raise UserError(f"{option}: {where}: {type(error).__name__}: {text}") from error
    return made


def _run_file(path: Path, where: str, option: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"verified_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{option}: expected a Python file, found {str(path)!r}")
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # where dataclasses look their own module up
    sys.path.insert(0, str(path.resolve().parent))  # its own imports of files beside it
    try:
        spec.loader.exec_module(code)
    except Exception as error:
        text = one_line(error, 200)
        raise UserError(f"{option}: {where}: {type(error).__name__}: {text}") from error
    finally:
        sys.path.pop(0)
    return code


def keras_inception(model: Any, size: int, dtype: str) -> JaxSide:
    """`keras.applications.InceptionV3`, with random weights, for images of `size`.

    Raises UserError for another network than inception_v3 with flavour "keras", or without Keras.
    """
    from googlenet_jax.models.registry import model_name, model_options

    name, options = model_name(model), model_options(model)
    if name != "inception_v3" or options["flavour"] != "keras" or options["width"] != 1:
        raise UserError(
            "--against keras: keras.applications has InceptionV3 alone: verify inception_v3 "
            f"with --option flavour=keras, found {name}"
        )
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError:
        raise UserError(
            "--against keras needs Keras: pip install 'keras>=3.10' and run the command again"
        ) from None
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        with from_jax.in_float64():
            made = keras.applications.InceptionV3(
                weights=None,
                input_shape=(size, size, 3),
                classes=model.num_classes,
                classifier_activation=None,
            )
    finally:
        keras.config.set_floatx(before)
    return _keras_side(made, dtype)
