"""docs/nnx.md: its code runs, in order, and does what the page says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "nnx.md").read_text(encoding="utf-8")


@pytest.mark.proof
def test_the_page():
    training, weights, equinox = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(training.replace("step(network, optimizer, images, labels)\nlogits", "logits"), names)
    before = jax.tree.leaves(names["nnx"].state(names["network"], names["nnx"].BatchStat))
    before = [np.asarray(leaf) for leaf in before]
    losses = [
        float(names["step"](*(names[n] for n in ("network", "optimizer", "images", "labels"))))
        for _ in range(2)
    ]
    assert losses[1] < losses[0]
    after = jax.tree.leaves(names["nnx"].state(names["network"], names["nnx"].BatchStat))
    assert all((np.asarray(a) != b).any() for a, b in zip(after, before, strict=True))
    names["logits"] = names["network"](names["images"], train=False).logits
    exec(weights, names)
    np.testing.assert_allclose(names["same"], names["logits"], rtol=1e-5, atol=1e-6)
    halved = names["to_linen"](names["network"])
    for a, b in zip(jax.tree.leaves(halved), jax.tree.leaves(names["variables"]), strict=True):
        np.testing.assert_allclose(a, 0.5 * b)
    exec(equinox, names)
