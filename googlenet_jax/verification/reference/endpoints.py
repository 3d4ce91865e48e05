"""Named activations of a reference network, under the names that the project publishes."""

import torch
from torch import Tensor, nn

_NAMES = {"conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2", "fc": "head"}
_BRANCHES = {
    "branch1": "conv_1x1",
    "branch2.0": "conv_3x3_reduce",
    "branch2.1": "conv_3x3",
    "branch3.0": "conv_5x5_reduce",
    "branch3.1": "conv_5x5",
    "branch4.1": "pool_proj",
}
_NAIVE_BRANCHES = {"branch1": "conv_1x1", "branch2": "conv_3x3", "branch3": "conv_5x5"}


def endpoint_names(network: nn.Module) -> dict[str, str]:
    """Returns {module's name in the network: endpoint's name}."""
    if hasattr(network, "endpoint_names"):
        return network.endpoint_names()
    names = {}
    for name, module in network.named_children():
        inside = {inner for inner, _ in module.named_modules()}
        if name.startswith("inception"):
            ours = "inception_" + name.removeprefix("inception")
            branches = _BRANCHES if "branch2.1" in inside else _NAIVE_BRANCHES
            names |= {name: ours} | {
                f"{name}.{branch}": f"{ours}/{unit}" for branch, unit in branches.items()
            }
        elif name.startswith("aux"):
            names |= {name: name, f"{name}.conv": f"{name}/conv", f"{name}.relu": f"{name}/fc"}
        elif name != "dropout":
            names[name] = _NAMES.get(name, name)
    return names


def endpoints(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Runs the network, its auxiliary heads too; returns endpoint's name -> activation as [N, H, W,
    C] or [N, C].
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for module_name, name in endpoint_names(network).items():

        def record(module: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> None:
            found[name] = output if output.ndim == 2 else output.permute(0, 2, 3, 1)

        hooks.append(network.get_submodule(module_name).register_forward_hook(record))
    network(images, aux=True)
    for hook in hooks:
        hook.remove()
    # The last pool is spatially one by one, or the whole map flattened, as the classifier reads it.
    last = max(name for name in found if name.startswith("pool"))
    found[last] = torch.flatten(found[last], 1)
    return found
