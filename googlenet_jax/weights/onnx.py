"""A network as an ONNX file, by jax2onnx, checked by onnxruntime. Both are the extra `onnx`."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.weights.export import difference, random_batches, serving_function

INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
OPSET = 21  # onnxruntime reads it from 1.20 on


def export_onnx(
    model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> bytes:
    """Makes an ONNX file, with the weights inside, of the function that `export.export_model`
    makes: images uint8 `[B, S, S, 3]`, RGB, any B → logits `[B, num_classes]`.

    Raises:
      UserError: the extra is not installed, or a dtype that ONNX's convolutions lack.
    """
    if model.dtype != jnp.float32:
        raise UserError(f"--format onnx: expected a float32 model, found {model.dtype.name}")
    to_onnx, size = _needed("jax2onnx").to_onnx, preprocessing.size
    function = _by_default_forms(serving_function(model, variables, preprocessing))
    images = jax.ShapeDtypeStruct(("B", size, size, 3), jnp.uint8)
    proto = to_onnx(
        function,
        inputs=[images],
        model_name=type(model).__name__,
        opset=OPSET,
        input_names=["images"],
        output_names=["logits"],
    )
    return bytes(proto.SerializeToString())


def check_onnx(
    path: Path, model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> float:
    """Runs the file by onnxruntime on random images, in batches of 1 and 3; returns the largest
    difference from the network's logits in units of their root mean square.
    """
    runtime = _needed("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    batches = random_batches(preprocessing.size)
    found = {name: session.run(["logits"], {"images": x})[0] for name, x in batches.items()}
    return difference(found, batches, model, variables, preprocessing)


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--format onnx: needs {name}; pip install 'googlenet-jax[onnx]'"
        ) from error


def _by_default_forms(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function without the forms of single platforms (`models.ops`), which ONNX can't choose
    among, and without the rules of its gradients.
    """

    def plain(images: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(function)(images)
        (logits,) = _evaluate(closed, images)
        return logits

    return plain


def _evaluate(closed: Any, *arguments: Any) -> list[Any]:
    """What the traced function returns, each `platform_dependent` by its default."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        given, params = [read(atom) for atom in equation.invars], equation.params
        name = equation.primitive.name
        if name == "platform_index":
            found = [params["platforms"].index(None)]
        elif name == "cond" and isinstance(given[0], int):
            found = _evaluate(params["branches"][given[0]], *given[1:])
        elif name in INLINED:
            found = _evaluate(params.get("jaxpr") or params["call_jaxpr"], *given)
        else:
            found = equation.primitive.bind(*given, **params)
            if not equation.primitive.multiple_results:
                found = [found]
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
