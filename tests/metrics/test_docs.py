"""The training loop of docs/fid.md runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from googlenet_jax import metrics


@pytest.mark.filterwarnings("ignore:.*images for .* features")
def test_the_loop_reports_a_fid(features, monkeypatch):
    text = Path(__file__).parents[2].joinpath("docs", "fid.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    monkeypatch.setattr(metrics, "inception_features", lambda resize: features)
    found: dict = {}
    exec(code, found)
    # Its generator learns the mean picture alone: whether random features like that is no promise.
    assert len(found["reported"]) == 2 and all(0 < each < np.inf for each in found["reported"])
