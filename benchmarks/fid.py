"""FID and its relatives beside other packages: `python -m benchmarks.fid PART`, JSON on standard
output.

Parts: agreement (features and values of the same images through each package), speed (images a
second beside pytorch-fid), distance (the distance alone beside scipy's square root), million (sums
in float32 of a million features), devices (1 and 8 simulated devices, 1 and 2 processes), bias (two
sets of one distribution). agreement and speed take what is installed of
`pip install pytorch-fid torch-fidelity torchmetrics clean-fid fidax`; no public weights are needed:
all networks get the same random ones.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 8  # images a side; enough to see where two packages part
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "worker"])
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args()
    result = PARTS[args.part]() if args.part in PARTS else worker(*args.rest)
    print(json.dumps(result, indent=1))


# ---------------------------------------------------------------------------------- the same things


def pictures(count: int, size: int, seed: int, dark: int = 0) -> np.ndarray:
    """Smooth noise with some structure, uint8 [count, size, size, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256 - dark, (count, 8, 8, 3)).astype(np.float32)
    from googlenet_jax.metrics.resize import resize

    smooth = resize(coarse, "torch", size) + random.normal(scale=12, size=(count, size, size, 3))
    return smooth.clip(0, 255).astype(np.uint8)


def torch_network() -> Any:
    """pytorch-fid's own network, with random weights of a sensible size."""
    import torch

    name_operators()
    from pytorch_fid import inception as fid

    net = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    # As `fid_inception_v3` patches it before it loads its weights.
    for letter, inputs, width in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        setattr(net, f"Mixed_5{letter}", fid.FIDInceptionA(inputs, pool_features=width))
    for letter, middle in zip("bcde", (128, 160, 160, 192), strict=True):
        setattr(net, f"Mixed_6{letter}", fid.FIDInceptionC(768, channels_7x7=middle))
    net.Mixed_7b, net.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            draw = (
                torch.randn(value.shape, generator=generator)
                if value.dtype.is_floating_point
                else None
            )
            if draw is None:
                continue
            if value.ndim > 1:
                value.copy_(draw * (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "bn.weight")):
                value.copy_(1 + 0.2 * draw.abs())
            else:
                value.copy_(0.1 * draw)
    return net.eval()


def name_operators() -> None:
    """torchvision's wheel holds operators for another build of PyTorch: naming them is enough."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for module in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        name_operators.library = library  # type: ignore[attr-defined]  # lives as long as it does


def ours(state: dict[str, Any], resize: str, dtype: str = "float32") -> Any:
    import googlenet_jax as gj

    model = gj.create_model("inception_v3", flavour="fid", dtype=dtype, param_dtype=dtype)
    return gj.metrics.inception_features(model, gj.weights.from_torch(model, state), resize)


def pytorch_fid_model(net: Any) -> Any:
    """Its InceptionV3, whose constructor would download weights, around `net`."""
    from pytorch_fid import inception as fid

    original, fid.fid_inception_v3 = fid.fid_inception_v3, lambda: net
    try:
        return fid.InceptionV3([3]).eval()
    finally:
        fid.fid_inception_v3 = original


# ---------------------------------------------------------------------------------------- agreement


def agreement() -> dict[str, Any]:
    import jax
    import torch

    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(os.cpu_count() or 1)
    images = {"a": pictures(COUNT, 64, 1), "b": pictures(COUNT, 64, 2, dark=60)}
    net = torch_network()
    result: dict[str, Any] = {
        "versions": versions(),
        "images": [COUNT, 64],
        "features": {},
        "values": {},
    }
    state, found = net.state_dict(), {}
    for resize in ("tf1", "torch", "clean"):
        extractor = ours(state, resize)
        for side, pixels in images.items():
            values = extractor.layers(pixels)
            found[f"ours {resize}", side] = np.asarray(values["pool3"])
            if resize == "tf1":
                found["ours logits", side] = np.asarray(values["logits"])
        print(f"ours {resize} done", file=sys.stderr)
    peers_features(net, images, found)
    for package, resize in EQUALS.items():
        if (package, "a") in found:
            result["features"][f"{package} / ours {resize}"] = relative(
                found[package, "a"], found[f"ours {resize}", "a"]
            )
    if ("torch-fidelity logits", "a") in found:
        result["features"]["torch-fidelity logits / ours"] = relative(
            found["torch-fidelity logits", "a"], found["ours logits", "a"]
        )
    result["features"]["resizes apart"] = {
        f"{one} / {other}": relative(found[f"ours {one}", "a"], found[f"ours {other}", "a"])
        for one, other in (("torch", "tf1"), ("clean", "tf1"), ("clean", "torch"))
    }
    result["features"]["float64, pytorch-fid / ours torch"] = in_float64(
        net, state, images["a"][:4]
    )
    result["values"] = values_of(found)
    return result


# Package → the resize of ours that is to equal it.
EQUALS = {
    "pytorch-fid": "torch",
    "torch-fidelity": "tf1",
    "torchmetrics antialias=False": "tf1",
    "torchmetrics": "tf1",
    "clean-fid's resize": "clean",
    "fidax": "torch",
}


def peers_features(
    net: Any, images: dict[str, np.ndarray], found: dict[tuple[str, str], np.ndarray]
) -> None:
    """Adds pool3 of each package that is installed, by (package, side)."""
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(Path(folder, "weights.pth"))
        torch.save(net.state_dict(), path)
        chosen = [
            each for each in PEERS if not os.environ.get("PEERS") or each in os.environ["PEERS"]
        ]
        for name in chosen:
            try:
                function = PEERS[name](net, path)
            except ImportError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            for side, pixels in images.items():
                for label, values in function(pixels).items():
                    found[label, side] = values
                    if side == "a" and label in EQUALS:
                        mine = found[f"ours {EQUALS[label]}", side]
                        print(f"{label}: {relative(values, mine):.2e}", file=sys.stderr)
            print(f"{name} done", file=sys.stderr)


def of_pytorch_fid(net: Any, path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    model = pytorch_fid_model(net)
    return lambda pixels: {"pytorch-fid": model(chw(pixels).float() / 255)[0][..., 0, 0].numpy()}


def of_torch_fidelity(net: Any, path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    model = FeatureExtractorInceptionV3("i", ["2048", "logits_unbiased"], path)

    def function(pixels: np.ndarray) -> dict[str, np.ndarray]:
        pool, logits = model(chw(pixels))
        return {"torch-fidelity": pool.numpy(), "torch-fidelity logits": logits.numpy()}

    return function


def of_torchmetrics(net: Any, path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    from torchmetrics.image.fid import NoTrainInceptionV3

    models = {
        "torchmetrics": NoTrainInceptionV3("i", ["2048"], path),
        "torchmetrics antialias=False": NoTrainInceptionV3("i", ["2048"], path, antialias=False),
    }
    return lambda pixels: {
        name: model._torch_fidelity_forward(chw(pixels))[0].numpy()
        for name, model in models.items()
    }


def of_clean_fid(net: Any, path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """clean-fid's network is a TorchScript download; its resizing before pytorch-fid's network."""
    import torch
    from cleanfid.resize import build_resizer

    resizer, model = build_resizer("clean"), pytorch_fid_model(net)
    model.resize_input = model.normalize_input = False

    def function(pixels: np.ndarray) -> dict[str, np.ndarray]:
        x = torch.from_numpy(np.stack([resizer(each) for each in pixels])).permute(0, 3, 1, 2)
        return {"clean-fid's resize": model((x - 128) / 128)[0][..., 0, 0].numpy()}

    return function


def of_fidax(net: Any, path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    from fidax import fid, inception

    tree: dict[str, Any] = {}
    for name, value in net.state_dict().items():
        *layers, kind, part = name.split(".")
        if kind not in ("conv", "bn") or part == "num_batches_tracked":
            continue
        node = tree
        for layer in [*layers, kind]:
            node = node.setdefault(layer, {})
        theirs = {
            "weight": "kernel" if kind == "conv" else "scale",
            "running_mean": "mean",
            "running_var": "var",
        }
        array = value.numpy().astype(np.float32)
        node[theirs.get(part, part)] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    folder = Path(path).parent
    with Path(folder, "inception_v3_weights_fid.pickle").open("wb") as file:
        pickle.dump(tree, file)
    model = inception.get_fid_network(ckpt_dir=str(folder))
    return lambda pixels: {
        "fidax": np.asarray(
            fid._extract_activations(model, pixels.astype(np.float32) / 255 * 2 - 1)
        )
    }


PEERS = {
    "pytorch-fid": of_pytorch_fid,
    "torch-fidelity": of_torch_fidelity,
    "torchmetrics": of_torchmetrics,
    "clean-fid": of_clean_fid,
    "fidax": of_fidax,
}


def in_float64(net: Any, state: dict[str, Any], pixels: np.ndarray) -> float:
    """The networks alone, on the same float64 input: their logic."""
    import jax
    import torch

    x = np.random.default_rng(SEED).normal(size=(len(pixels), 3, 299, 299))
    model = pytorch_fid_model(net.double())
    model.resize_input = model.normalize_input = False
    with torch.no_grad():
        theirs = model(torch.from_numpy(x))[0][..., 0, 0].numpy()
    extractor = ours({name: value.double() for name, value in state.items()}, "tf1", "float64")
    from googlenet_jax.models.endpoints import endpoints

    mine = endpoints(
        extractor.model, extractor.variables, jax.numpy.asarray(x.transpose(0, 2, 3, 1))
    )
    net.float()
    return relative(theirs, np.asarray(mine["pool3"]))


def values_of(found: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """The figures of each package from its own features, and ours beside them."""
    from googlenet_jax import metrics

    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in found if "logits" not in name):
        a, b = found[name, "a"], found[name, "b"]
        sides = metrics.statistics_of(a), metrics.statistics_of(b)
        row: dict[str, Any] = {"fid, our arithmetic": metrics.frechet_distance(*sides)}
        if name == "pytorch-fid":
            from pytorch_fid.fid_score import calculate_frechet_distance

            arguments = [part for side in sides for part in (side.mean, side.cov)]
            row["fid"] = float(calculate_frechet_distance(*arguments))
        if name == "torch-fidelity":
            row |= torch_fidelitys(found)
        if name in ("torch-fidelity", "ours tf1"):
            row |= our_others(found, name)
        result[name] = row
    return result


def torch_fidelitys(found: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = (torch.from_numpy(found["torch-fidelity", side]) for side in "ab")
    logits = torch.from_numpy(found["torch-fidelity logits", "b"])
    statistics = [fid_features_to_statistics(each) for each in (a, b)]
    quiet = {"verbose": False}
    kid = kid_features_to_metric(a, b, kid_subset_size=6, kid_subsets=10, **quiet)
    return {
        **fid_statistics_to_metric(*statistics, False),
        **{name: float(value) for name, value in kid.items()},
        **isc_features_to_metric(logits, splits=2, shuffle=False),
        **prc_features_to_metric(b, a, **quiet),
    }


def our_others(found: dict[tuple[str, str], np.ndarray], name: str) -> dict[str, Any]:
    from googlenet_jax import metrics

    a, b = found[name, "a"], found[name, "b"]
    logits = found["torch-fidelity logits" if name == "torch-fidelity" else "ours logits", "b"]
    kid = metrics.kernel_distance(a, b, subset_size=6, subsets=10)
    score = metrics.InceptionScore(lambda x: x, width=1008, splits=2, examples=len(b))
    both = metrics.neighbourhoods(a, b)
    return {
        "our KID": [kid.mean, kid.std],
        "our IS": list(score.update_features(logits).compute()),
        "our precision, recall": [both.precision, both.recall],
    }


def relative(theirs: np.ndarray, mine: np.ndarray) -> float:
    theirs, mine = (np.asarray(each, np.float64) for each in (theirs, mine))
    return float(np.linalg.norm(theirs - mine) / np.linalg.norm(theirs))


def chw(pixels: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


# ------------------------------------------------------------------------------------ speed, digits


def speed(batch: int = 16, rounds: int = 3) -> dict[str, Any]:
    """Images a second of the network with its resizing, in turns; the best of each."""
    import torch

    from googlenet_jax.runtime.process import prepare

    prepare()
    import jax

    net = torch_network()
    model, extractor = pytorch_fid_model(net), ours(net.state_dict(), "torch")
    pixels = pictures(batch, 64, 3)
    tensor = chw(pixels).float() / 255

    def theirs() -> None:
        with torch.no_grad():
            model(tensor)

    runs = {"pytorch-fid": theirs, "ours": lambda: jax.block_until_ready(extractor(pixels))}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    rates = {name: batch / seconds for name, seconds in best.items()}
    return {
        "images/s": rates,
        "ratio": rates["ours"] / rates["pytorch-fid"],
        "batch": batch,
        "versions": versions(),
        "load": os.getloadavg(),
    }


def distance(width: int = 2048, count: int = 5000) -> dict[str, Any]:
    """Seconds of the distance alone beside pytorch-fid's formula with scipy's square root."""
    import scipy.linalg

    from googlenet_jax.metrics import frechet_distance, statistics_of

    random = np.random.default_rng(SEED)
    spread = np.sqrt(1 / np.arange(1, width + 1))
    sides = [statistics_of(random.normal(size=(count, width)) * spread * k) for k in (1, 1.1)]
    start = time.perf_counter()
    mine = frechet_distance(*sides)
    ours_seconds = time.perf_counter() - start
    start = time.perf_counter()
    step = sides[0].mean - sides[1].mean
    root = scipy.linalg.sqrtm(sides[0].cov.dot(sides[1].cov))
    theirs = step @ step + np.trace(sides[0].cov) + np.trace(sides[1].cov) - 2 * np.trace(root).real
    scipy_seconds = time.perf_counter() - start
    return {
        "seconds": {"ours": ours_seconds, "scipy": scipy_seconds},
        "ratio": scipy_seconds / ours_seconds,
        "values": [mine, float(theirs)],
        "scipy": scipy.__version__,
        "load": os.getloadavg(),
    }


def million(width: int = 64, batches: int = 10_000, batch: int = 100) -> dict[str, Any]:
    """A million features in float32: the error of mean and covariance, in standard deviations."""
    import jax
    import jax.numpy as jnp

    from googlenet_jax.metrics.moments import Moments

    random = np.random.default_rng(SEED)
    spread = np.logspace(-2, 0, width)
    mix = np.eye(width) + 0.3 * random.normal(size=(width, width)) / np.sqrt(width)
    moments, plain = (
        Moments.zeros(width),
        [np.zeros(width, np.float32), np.zeros((width,) * 2, np.float32)],
    )
    total, products = np.zeros(width, np.longdouble), np.zeros((width, width))
    origin = None
    update = jax.jit(lambda moments, rows: moments.update(rows))
    for _ in range(batches):
        rows = (np.abs(random.normal(size=(batch, width)) @ mix) * spread + 0.4).astype(np.float32)
        moments = update(moments, jnp.asarray(rows))
        plain = [plain[0] + rows.sum(0), plain[1] + rows.T @ rows]
        origin = rows.mean(0).astype(np.float64) if origin is None else origin
        centred = rows.astype(np.float64) - origin
        total += centred.sum(0)
        products += centred.T @ centred
    count = batch * batches
    mean = np.asarray(total / count, np.float64)
    cov = (products - count * np.outer(mean, mean)) / (count - 1)
    scale = np.sqrt(np.diag(cov))
    found = moments.statistics()
    naive = plain[0] / count
    naive_cov = (plain[1] - count * np.outer(naive, naive)) / (count - 1)
    return {
        "features": [count, width],
        "covariance, of σᵢσⱼ": {
            "ours": float((np.abs(found.cov - cov) / np.outer(scale, scale)).max()),
            "plain float32": float((np.abs(naive_cov - cov) / np.outer(scale, scale)).max()),
        },
        "mean, of σ": {
            "ours": float((np.abs(found.mean - origin - mean) / scale).max()),
            "plain float32": float((np.abs(naive - origin - mean) / scale).max()),
        },
    }


def devices() -> dict[str, Any]:
    """FID of the same features on 1 device, 8 simulated ones, and 2 processes of 4 and of 1."""
    values = {}
    for processes, each in ((1, 1), (1, 8), (2, 4), (2, 1)):
        address = f"localhost:{12_000 + os.getpid() % 20_000 + processes * 8 + each}"
        flags = f"--xla_force_host_platform_device_count={each}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.fid", "worker", address, str(processes)]
        running = [
            subprocess.Popen(
                [*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True
            )
            for rank in range(processes)
        ]
        told = [each.communicate()[0] for each in running]
        outputs = [
            json.loads(text[text.index("{") :]) for text in told
        ]  # Gloo has lines of its own
        values[f"{processes} × {each}"] = outputs
    flat = [value for outputs in values.values() for output in outputs for value in output.values()]
    return {"values": values, "largest relative difference": (max(flat) - min(flat)) / max(flat)}


def worker(address: str, processes: str, rank: str) -> dict[str, float]:
    """One process of `devices`: on a mesh over all, and merged from a metric of each's own."""
    import jax
    import jax.numpy as jnp

    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(rank))
    from googlenet_jax.metrics import frechet_distance
    from googlenet_jax.metrics.moments import Moments
    from googlenet_jax.metrics.scores import FID
    from googlenet_jax.runtime.sharding import create_mesh, shard_batch

    width, batch = 64, 64
    random = np.random.default_rng(SEED)
    mix = random.normal(size=(width, width)) / np.sqrt(width)
    sides = [
        np.maximum(random.normal(size=(1024, width)) @ mix * scale + 0.3, 0).astype(np.float32)
        for scale in (1.0, 1.05)
    ]
    mesh, share = create_mesh(), batch // int(processes)
    mine = slice(int(rank) * share, (int(rank) + 1) * share)
    on_mesh = []
    for side in sides:
        moments = Moments.zeros(width, mesh)
        for start in range(0, len(side), batch):
            rows = side[start : start + batch][mine]
            moments = moments.update(shard_batch({"rows": rows}, mesh)["rows"])
        on_mesh.append(moments.statistics())
    own = FID(lambda x: x, width=width)
    for real, side in zip((True, False), sides, strict=True):
        for start in range(0, len(side), batch):
            own = own.update_features(jnp.asarray(side[start : start + batch][mine]), real)
    return {"mesh": frechet_distance(*on_mesh), "merged": own.merge_processes().compute()}


def bias(width: int = 512, repeats: int = 3) -> dict[str, Any]:
    """FID of two sets of one normal distribution, of its covariance's trace, by N / features."""
    from googlenet_jax.metrics import frechet_distance, statistics_of

    random = np.random.default_rng(SEED)
    result: dict[str, Any] = {}
    for power in (0.5, 1.0):
        variances = np.arange(1, width + 1) ** -power
        for ratio in (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 25):
            sets = [
                statistics_of(random.normal(size=(int(width * ratio), width)) * np.sqrt(variances))
                for _ in range(2 * repeats)
            ]
            found = [frechet_distance(*sets[i : i + 2]) for i in range(0, 2 * repeats, 2)]
            result[f"eigenvalues 1/i^{power}, {ratio}"] = float(np.mean(found) / variances.sum())
    return result


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    names = "jax torch pytorch-fid torch-fidelity torchmetrics clean-fid fidax scipy numpy"
    for name in names.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "agreement": agreement,
    "speed": speed,
    "distance": distance,
    "million": million,
    "devices": devices,
    "bias": bias,
}

if __name__ == "__main__":
    main()
