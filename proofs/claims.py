"""Recomputes the numerical claims of the Inception papers and of common tutorials on them; writes
docs/claims.md and its picture.

python -m proofs claims        # a minute or two on 2 cores; prints the figures as JSON

Counts are of the traced computation (`googlenet_jax.profiling.summary`): nothing is typed in but
what the sources print.
"""

import argparse
import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import googlenet_jax as gj
from googlenet_jax.models.googlenet import CAFFE, Inception, NaiveInception, Widths
from googlenet_jax.models.inception_modules import (
    AsymmetricConv,
    InceptionStyle,
    ModuleA,
    ModuleB,
    TwoConv3x3,
    WidthsA,
)
from googlenet_jax.models.layers import sow, xavier_fan_in
from googlenet_jax.models.network import Layers, Network, Output
from googlenet_jax.profiling.printed import compare
from googlenet_jax.profiling.summary import Row, Summary, summarize
from googlenet_jax.training.losses import weighted_cross_entropy

ROOT = Path(__file__).resolve().parents[1]

PAGE, PICTURE = ROOT / "docs" / "claims.md", ROOT / "docs" / "gradient-norms.png"
V1, BN, V3 = "arXiv 1409.4842", "arXiv 1502.03167", "arXiv 1512.00567"
# One-tower AlexNet as Krizhevsky's paper (2012) splits it over two GPUs: kernel entries and biases
# by layer, by its section 3.5.
ALEXNET = (
    (11 * 11 * 3, 96),
    (5 * 5 * 48, 256),
    (3 * 3 * 256, 384),
    (3 * 3 * 192, 384),
    (3 * 3 * 192, 256),
)
ALEXNET += ((6 * 6 * 256, 4096), (4096, 4096), (4096, 1000))


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a source says, what the traced computation gives, and whether the two agree."""

    source: str
    says: str
    computed: str
    verdict: str


# ----------------------------------------------------------------------------------------- counting


class Probe(Network):
    """`block` alone, on a map of `channels` channels: the row "block" of its summary is what it
    costs.
    """

    channels: int = 128
    block: Callable[[Layers, jax.Array], jax.Array] | None = None

    style: Any = InceptionStyle(
        kernel_init=xavier_fan_in, dense_init=xavier_fan_in, bias_init=nn.initializers.zeros
    )

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None) -> Output:
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        x = layers.conv("before", x, self.channels)
        return Output(layers.logits("head", self.block(layers, x).mean((1, 2)), 2), {})


def cost(
    block: Callable[[Layers, jax.Array], jax.Array],
    channels: int,
    size: int,
    style: Any = Probe.style,
) -> Row:
    """The row of a block whose layers lie under the name "block"."""
    row = summarize(Probe(channels=channels, block=block, style=style), size).row("block")
    assert row is not None
    return row


@functools.cache
def network(name: str, size: int, **options: Any) -> Summary:
    """A network's summary."""
    return summarize(gj.create_model(name, **options), size)


def conv(
    features: int, kernel: int | tuple[int, int], stride: int = 1
) -> Callable[[Layers, jax.Array], jax.Array]:
    """A convolution as a block."""
    return lambda layers, x: layers.conv("block", x, features, kernel, stride)


class Unfactorised(nn.Module):
    """Module B with its n×n convolutions whole."""

    layers: Layers
    middle: int
    features: int
    n: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        convolve, c, n = self.layers.conv, self.middle, self.n
        convolve("conv_1x1", x, self.features)
        convolve("single", convolve("single_reduce", x, c), self.features, n)
        double = convolve("double_1", convolve("double_reduce", x, c), c, n)
        convolve("pool_proj", x, self.features)
        return sow(self, "output", convolve("double_2", double, self.features, n))


class Reduced(nn.Module):
    """A convolution behind a 1×1 that reduces the channels."""

    layers: Layers
    middle: int
    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        reduced = self.layers.conv("reduce", x, self.middle)
        return sow(self, "output", self.layers.conv("conv", reduced, self.features, self.kernel))


def saving(new: float, old: float) -> str:
    """How much less `new` is than `old`, in percent."""
    return (
        f"{100 * (1 - new / old):.1f} % less"
        if new <= old
        else f"{100 * (new / old - 1):.1f} % more"
    )


# ------------------------------------------------------------------------------------------- claims


def factorisation() -> list[Claim]:
    """Smaller kernels in place of larger ones, 64 channels in and out on a 35×35 map."""
    whole = cost(conv(64, 5), 64, 35)
    two = cost(lambda layers, x: TwoConv3x3(layers, 64, name="block")(x), 64, 35)
    three = cost(conv(64, 3), 64, 35)
    asymmetric = {
        n: cost(lambda layers, x, n=n: AsymmetricConv(layers, 64, n, name="block")(x), 64, 17)
        for n in (3, 7)
    }
    seven = cost(conv(64, 7), 64, 17)
    per = 64 * 64
    claims = [
        Claim(
            f"{V3}, 3.1; tutorials",
            "two 3×3 in place of a 5×5: 18 weights for 25, 28 % less work",
            f"{two.weights // per} for {whole.weights // per} a pair of channels; "
            f"multiply-adds {saving(two.multiply_adds, whole.multiply_adds)}",
            "right",
        ),
        Claim(
            "tutorial",
            "two 3×3 in place of a 5×5 cost more operations",
            f"multiply-adds {saving(two.multiply_adds, whole.multiply_adds)}: {two.multiply_adds:,}"
            f" for {whole.multiply_adds:,}",
            "wrong: they cost 28 % fewer",
        ),
        Claim(
            f"{V3}, 3.2; tutorials",
            "3×1 then 1×3 in place of a 3×3: 6 weights for 9, 33 % less",
            f"{asymmetric[3].weights // per} for {three.weights // per};"
            f" {saving(asymmetric[3].weights, three.weights)}",
            "right",
        ),
        Claim(
            f"{V3}, 3.2",
            "the saving of 1×n and n×1 grows with n",
            f"n = 7: {asymmetric[7].weights // per} for {seven.weights // per};"
            f" {saving(asymmetric[7].weights, seven.weights)}",
            "right",
        ),
    ]
    for n in (3, 7):
        factored = cost(
            lambda layers, x, n=n: ModuleB(layers, 192, 192, n, name="block")(x), 768, 17
        )
        plain = cost(
            lambda layers, x, n=n: Unfactorised(layers, 192, 192, n, name="block")(x), 768, 17
        )
        inside = [row.multiply_adds - reductions(768, 192, 192) for row in (factored, plain)]
        claims.append(
            Claim(
                "tutorial",
                "module B saves 33 % of the operations",
                f"n = {n} (6e: 192 inside and out, 17×17×768): n×n convolutions {saving(*inside)},"
                f" the whole module {saving(factored.multiply_adds, plain.multiply_adds)}",
                (
                    "right of the convolutions alone"
                    if n == 3
                    else "low: n = 7, which the networks use, saves 71 % of them"
                ),
            )
        )
    return claims


def reductions(channels: int, middle: int, features: int) -> int:
    """Multiply-adds of a module B's 1×1 convolutions on its 17×17 map."""
    return 17 * 17 * channels * (2 * middle + 2 * features)


def bottlenecks() -> list[Claim]:
    """What 1×1 reductions buy."""
    claims = []
    for kernel in (3, 5):
        direct = cost(conv(256, kernel), 128, 28)
        reduced = cost(
            lambda layers, x, kernel=kernel: Reduced(layers, 32, 256, kernel, name="block")(x),
            128,
            28,
        )
        claims.append(
            Claim(
                "tutorials",
                "128 → 32 → 256 channels in place of 128 → 256 saves computation and memory",
                f"{kernel}×{kernel} on 28×28: weights {reduced.weights:,} for {direct.weights:,}"
                f" ({saving(reduced.weights, direct.weights)}), multiply-adds"
                f" {reduced.multiply_adds:,} for {direct.multiply_adds:,}; activations 32 + 256"
                " channels for 256 (12.5 % more)",
                "right of weights and work; activations take more memory",
            )
        )
    rows = {"with reductions": Inception, "naive": NaiveInception}
    widths = Widths(64, 96, 128, 16, 32, 32)
    costs = {
        kind: cost(lambda layers, x, m=m: m(layers, widths, name="block")(x), 192, 28, CAFFE)
        for kind, m in rows.items()
    }
    reduced, naive = costs["with reductions"], costs["naive"]
    totals = {
        name: network(name, 224).totals(aux=False) for name in ("googlenet", "googlenet_naive")
    }
    ratio = {
        field: totals["googlenet_naive"][field] / totals["googlenet"][field]
        for field in ("parameters", "multiply_adds")
    }
    claims.append(
        Claim(
            f"{V1}, 4; tutorials",
            "naive modules blow up: 1×1 reductions make 5×5 affordable",
            f"3a: {reduced.multiply_adds / 1e6:.0f} M for {naive.multiply_adds / 1e6:.0f} M"
            " multiply-adds and 256 for 416 channels; the whole network naive:"
            f" {ratio['multiply_adds']:.1f}× the multiply-adds, {ratio['parameters']:.1f}× the"
            " parameters",
            "right",
        )
    )
    a = cost(
        lambda layers, x: ModuleA(layers, WidthsA(64, 48, 64, 64, 96, 64), 3, name="block")(x),
        288,
        35,
    )
    released = cost(
        lambda layers, x: ModuleA(layers, WidthsA(64, 48, 64, 64, 96, 64), 5, name="block")(x),
        288,
        35,
    )
    claims.append(
        Claim(
            f"{V3}, Fig. 5",
            "module A has no 5×5",
            f"35×35×288: {a.multiply_adds / 1e6:.0f} M multiply-adds; with the 5×5 that v3 as"
            f" released keeps: {released.multiply_adds / 1e6:.0f} M",
            "right of the paper, not of the released v3",
        )
    )
    first = cost(conv(640, 3), 320, 36)
    last = cost(conv(640, 3), 320, 18)
    claims.append(
        Claim(
            f"{V3}, 5",
            "pooling before a convolution, which makes a bottleneck, costs a quarter of pooling"
            " after it",
            f"36×36×320 → 640: {last.multiply_adds:,} for {first.multiply_adds:,},"
            f" {first.multiply_adds / last.multiply_adds:g}×",
            "right",
        )
    )
    return claims


def networks() -> list[Claim]:
    """Sizes and depths of whole networks."""
    googlenet, separable = network("googlenet", 224), network("googlenet", 224, stem="separable")
    main = googlenet.totals(aux=False)
    alexnet = sum((entries + 1) * features for entries, features in ALEXNET)
    work = {
        "dense": main["multiply_adds"],
        "separable": separable.totals(aux=False)["multiply_adds"],
    }
    bn, v2, v3 = (
        network("bn_inception", 224),
        network("inception_v2", 299),
        network("inception_v3", 299),
    )
    bn_totals, v2_totals, v3_totals = (summary.totals(aux=False) for summary in (bn, v2, v3))
    v3_factor = v3_totals["multiply_adds"] / work["dense"]
    v2_factor = v2_totals["multiply_adds"] / work["dense"]
    return [
        Claim(
            f"{V1}, 1; tutorials",
            "12 times fewer parameters than AlexNet",
            f"{alexnet:,} for {main['parameters']:,}: {alexnet / main['parameters']:.1f} times",
            f"wrong: {alexnet / main['parameters']:.1f} times; the paper's own Table 1 adds up to "
            f"{printed_weights():.2f} M weights, not to 5 M",
        ),
        Claim(f"{V1}, 5", "22 layers with parameters", f"{googlenet.depth}", "right"),
        Claim(
            f"{V1}, 1",
            "1.5 billion multiply-adds at inference",
            f"{work['dense'] / 1e9:.3f} G with the 7×7 convolution, {work['separable'] / 1e9:.3f} G"
            " with the separable one of Table 1's first row",
            "right of the separable stem",
        ),
        Claim(
            f"{BN}, appendix",
            "25 % more parameters and about 30 % more work than Inception",
            f"{bn_totals['parameters']:,} parameters,"
            f" {saving(bn_totals['parameters'], main['parameters'])};"
            f" {bn_totals['multiply_adds'] / 1e9:.3f} G multiply-adds,"
            f" {saving(bn_totals['multiply_adds'], work['separable'])}",
            "right of the work; the parameters grow more than twice as much",
        ),
        Claim(
            f"{BN}, 4.2",
            "13.6 million parameters",
            f"{bn_totals['parameters']:,} as its Fig. 5 prints the network",
            "not what the figure gives; no auxiliary head is in it, whose parameters may make up"
            " the rest",
        ),
        Claim(
            f"{BN}, appendix",
            "the longest path has 9 weight layers more",
            f"{bn.depth - separable.depth} more ({bn.depth} for {separable.depth}, each counting"
            " the separable stem as two)",
            "right of the nine modules that both have; the module 3c, which the figure adds, brings"
            " 3 more",
        ),
        Claim(
            f"{V3}, 6",
            "42 layers deep, about 2.5 times the computation of GoogLeNet",
            f"v2: depth {v2.depth}, {v2_totals['multiply_adds'] / 1e9:.2f} G multiply-adds,"
            f" {v2_factor:.1f}×; v3: depth {v3.depth}, {v3_totals['multiply_adds'] / 1e9:.2f} G,"
            f" {v3_factor:.1f}×",
            f"depth {'right' if v2.depth == 42 else f'{v2.depth} with these widths and modules'};"
            " the work is more: 299×299 images at these widths",
        ),
        Claim(
            f"{V3}, abstract",
            "5 billion multiply-adds and less than 25 million parameters",
            f"v3: {v3_totals['multiply_adds'] / 1e9:.2f} G and {v3_totals['parameters']:,}",
            "right of the parameters; the work of the released network is 5.7 G",
        ),
    ]


def printed_weights() -> float:
    """The sum of the weights that GoogLeNet's Table 1 prints, in millions."""
    printed = gj.create_model("googlenet").printed
    return sum(row.weights or 0 for row in printed.rows) * 1024 / 1e6


def heads() -> list[Claim]:
    """Global average pooling against a fully connected head."""
    average, whole = (_head(average) for average in (True, False))
    rows = {
        full: network("googlenet", 224, fully_connected_head=full).row("head")
        for full in (False, True)
    }
    total = network("googlenet", 224).totals(aux=False)
    return [
        Claim(
            "tutorial",
            "10×10×256 to two classes: 51,200 weights fully connected, 512 behind global average"
            " pooling",
            f"{whole.weights:,} and {average.weights:,}",
            "right",
        ),
        Claim(
            f"{V1}, 5; tutorial",
            "global average pooling cuts GoogLeNet's parameters, and its computation greatly",
            f"7×7×1024 to 1000 classes: {rows[True].weights:,} weights for {rows[False].weights:,};"
            " the multiply-adds saved are"
            f" {(rows[True].multiply_adds - rows[False].multiply_adds) / 1e6:.0f} M beside"
            f" {total['multiply_adds'] / 1e6:.0f} M of the network",
            "right of the parameters; of the computation it saves 3 %",
        ),
    ]


def _head(average: bool) -> Row:
    class Head(Network):
        style = Probe.style

        @nn.compact
        def __call__(self, images, train, aux=None, use_running_average=None) -> Output:
            layers, x, _ = self.begin(images, train, aux, use_running_average)
            x = layers.conv("before", x, 256)
            return self.finish(layers, "pool", x, average=average)

    row = summarize(Head(num_classes=2), 10).row("head")
    assert row is not None
    return row


def tables() -> dict[str, list[list[str]]]:
    """The papers' tables beside what the networks give, row by row: layers, output, weights,
    multiply-adds, verdict.
    """
    found = {}
    for name, size, options in (
        ("googlenet", 224, {"stem": "separable"}),
        ("inception_v2", 299, {}),
    ):
        model = gj.create_model(name, **options)
        rows = []
        for row in compare(network(name, size, **options), model.printed):
            figures = (
                "–"
                if row.paper_weights is None
                else f"{row.weights:.1f} K / {row.paper_weights:g} K"
            )
            work = (
                "–"
                if row.paper_multiply_adds is None
                else f"{row.multiply_adds:.1f} M / {row.paper_multiply_adds:g} M"
            )
            off = [
                f"{d:+.1f} %"
                for d in (row.weights_difference, row.multiply_adds_difference)
                if d is not None
            ]
            verdict = "same" if row.equal else ", ".join(off) or "another size"
            shapes = ["×".join(map(str, shape)) for shape in (row.output, row.paper_output)]
            rows.append([", ".join(row.layers), " / ".join(shapes), figures, work, verdict])
        found[model.printed.source] = rows
    return found


# ----------------------------------------------------------------------------------- gradient norms

KINDS = ("googlenet", "googlenet_bn")
WEIGHTS = {"without": 0.0, "with": 0.3}


def gradient_norms(name: str) -> dict[str, dict[str, float]]:
    """By "with" and "without" auxiliary heads: each layer's gradient norm over that of its kernels,
    as drawn, on 32 real digits.

    The network has a quarter of its widths and takes 64×64 images; dropout is off, so that nothing
    but the heads differs.
    """
    model = gj.create_model(name, num_classes=10, width=0.25, dropout=0.0, aux_dropout=0.0)
    digits = load_digits()
    pictures = (
        np.stack(
            [
                cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC)
                for image in digits.images[:32]
            ]
        )
        / 8.0
        - 1.0
    )
    images, labels = (
        jnp.asarray(np.repeat(pictures[..., None], 3, -1), jnp.float32),
        jnp.asarray(digits.target[:32]),
    )
    quick = {"xla_backend_optimization_level": 0}  # each runs but once or twice
    init = jax.jit(functools.partial(model.init, train=False), compiler_options=quick)
    variables = init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, images[:1])

    def loss(params: Any, aux_weight: jax.Array) -> jax.Array:
        output, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return weighted_cross_entropy(output, {"label": labels}, aux_weight)[0]

    gradient = jax.jit(jax.grad(loss), compiler_options=quick)
    found = {}
    for kind, weight in WEIGHTS.items():
        gradients = gradient(variables["params"], jnp.float32(weight))
        trunk = [layer for layer in model.torch_names if not layer.startswith(("aux", "head"))]
        layers = list(dict.fromkeys(layer.split("/")[0] for layer in trunk))
        found[kind] = {
            layer: _norm(gradients[layer]) / _norm(variables["params"][layer]) for layer in layers
        }
    return found


def _norm(tree: Any) -> float:
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    return math.sqrt(sum(float(jnp.sum(jnp.square(kernel))) for kernel in kernels))


def draw(norms: dict[str, dict[str, dict[str, float]]]) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (name, kinds) in zip(axes, norms.items(), strict=True):
        for kind, form in (("with", "o-"), ("without", "s--")):
            values = kinds[kind]
            label = f"{kind} auxiliary heads"
            axis.semilogy(
                range(len(values)), list(values.values()), form, fillstyle="none", label=label
            )
        axis.set_xticks(
            range(len(values)), [layer.removeprefix("inception_") for layer in values], rotation=60
        )
        axis.set_title(f"{name} ({'batch norm' if name.endswith('bn') else 'plain'})")
        axis.set_xlabel("layer, from the image on")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0].set_ylabel("‖gradient‖ / ‖weights‖ of the kernels")
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def gradient_claims(norms: dict[str, dict[str, dict[str, float]]]) -> list[Claim]:
    """What the auxiliary heads do to the first layers' gradients."""
    claims = []
    for name, kinds in norms.items():
        first = {kind: values["conv1"] for kind, values in kinds.items()}
        deepest = kinds["without"]["inception_5b"]
        claims.append(
            Claim(
                f"{V1}, 5; tutorials",
                "auxiliary heads counter vanishing gradients",
                f"`{name}`: ‖gradient‖/‖weights‖ of conv1 {first['without']:.3g} without,"
                f" {first['with']:.3g} with them ({first['with'] / first['without']:.2f}×);"
                f" inception_5b {deepest:.3g}",
                _verdict(first["with"] / first["without"], first["without"] / deepest),
            )
        )
    return claims


def _verdict(raised: float, carried: float) -> str:
    """`raised`: conv1's gradient with the heads over that without; `carried`: that without over
    inception_5b's.
    """
    heads = "the heads raise it" if raised > 1.1 else "the heads change next to nothing"
    if carried > 1:
        return f"{heads}; without them it grows towards the image"
    return f"{heads}; without them it " + (
        "shrinks but does not vanish" if carried > 0.1 else "vanishes"
    )


# --------------------------------------------------------------------------------------------- page

TEXT = """# The claims, recomputed

Made by `python -m proofs claims`. The middle column is what the sources say, the next what the traced computation of this project's
networks gives; a multiply-add is one, K is 1024. Tutorials:
common introductions to these networks.

{claims}

## Auxiliary heads and the gradient

![Gradient norm by layer, with and without the auxiliary heads, plain and batch-normalised](gradient-norms.png)

At the start of training, on 32 real digits at 64×64, with a quarter of the widths and no dropout; only the kernels count. The heads stand
after 4a and 4d, so that what lies behind 4d gets nothing from them. It is the start of training alone: what helps later is not shown.

{gradients}

{tables}
"""


def rows_to_markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted() -> tuple[list[Claim], dict[str, list[list[str]]]]:
    """Everything that tracing gives: the claims and the papers' tables."""
    return [*factorisation(), *bottlenecks(), *networks(), *heads()], tables()


def render(claims: list[Claim], papers: dict[str, list[list[str]]], gradients: list[Claim]) -> str:
    header = ["source", "says", "computed", "verdict"]
    parts = [
        f"## {source}, row by row\n\nComputed / printed.\n\n"
        + rows_to_markdown(["layers", "output", "weights", "multiply-adds", "verdict"], rows)
        for source, rows in papers.items()
    ]
    return TEXT.format(
        claims=rows_to_markdown(header, [list(dataclasses.astuple(claim)) for claim in claims]),
        gradients=rows_to_markdown(
            header, [list(dataclasses.astuple(claim)) for claim in gradients]
        ),
        tables="\n\n".join(parts),
    )


def differences(page: str, *, gradients: bool) -> list[str]:
    """The lines of docs/claims.md that the code computes otherwise: all tables, and with
    `gradients` the norms, to one in a hundred, as rounding differs from one CPU to another.
    """
    claims, papers = counted()
    lines = [
        f"| {claim.source} | {claim.says} | {claim.computed} | {claim.verdict} |"
        for claim in claims
    ]
    lines += ["| " + " | ".join(row) + " |" for rows in papers.values() for row in rows]
    wrong = [line for line in lines if line not in page]
    for name in KINDS if gradients else ():
        line = next(line for line in page.splitlines() if f"`{name}`: ‖gradient‖" in line)
        printed = map(float, re.findall(r"conv1 (\S+) without, (\S+) with", line)[0])
        norms = gradient_norms(name)
        for kind, value in zip(("without", "with"), printed, strict=True):
            if not math.isclose(norms[kind]["conv1"], value, rel_tol=1e-2):
                wrong.append(f"{name}, conv1 {kind}: {norms[kind]['conv1']}, printed {value}")
    return wrong


def main() -> int:
    """Writes the page and its picture, or compares the page with what is computed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the page; write nothing")
    parser.add_argument("--gradients", action="store_true", help="with --check: the norms too")
    args = parser.parse_args()
    if args.check:
        wrong = differences(PAGE.read_text(encoding="utf-8"), gradients=args.gradients)
        print(json.dumps({"differences": wrong}, ensure_ascii=False))
        return 1 if wrong else 0
    claims, papers = counted()
    norms = {}
    for name in KINDS:
        norms[name] = gradient_norms(name)
        print(json.dumps({"model": name, "relative_gradient_norm": norms[name]}), flush=True)
    draw(norms)
    gradients = gradient_claims(norms)
    PAGE.write_text(render(claims, papers, gradients), encoding="utf-8")
    print(
        json.dumps(
            [dataclasses.asdict(claim) for claim in [*claims, *gradients]], ensure_ascii=False
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
