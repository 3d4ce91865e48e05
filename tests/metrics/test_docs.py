"""The training loop of docs/fid.md runs as it stands there."""

import re
from pathlib import Path

import pytest

from googlenet_jax import metrics


@pytest.mark.filterwarnings("ignore:.*images for .* features")
def test_the_loop_reports_a_fid_that_falls(features, monkeypatch):
    text = Path(__file__).parents[2].joinpath("docs", "fid.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    monkeypatch.setattr(metrics, "inception_features", lambda resize: features)
    found: dict = {}
    exec(code, found)
    first, last = found["reported"]
    assert 0 < last < 0.8 * first
