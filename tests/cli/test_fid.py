"""`googlenet-jax fid` and `features` on the digits, with a narrow network of random weights."""

import json

import numpy as np
import pytest
from PIL import Image

from googlenet_jax import metrics
from googlenet_jax.cli import fid as command
from googlenet_jax.cli.main import main
from googlenet_jax.metrics import extract, summary
from googlenet_jax.weights import load
from googlenet_jax.weights.trained_model import TrainedModel
from tests.metrics.conftest import features  # noqa: F401  # a fixture


@pytest.fixture(autouse=True)
def narrow(monkeypatch, tmp_path, features):  # noqa: F811
    """The commands take the narrow network, and keep what they find in a folder of the test's."""
    monkeypatch.setenv("GOOGLENET_JAX_CACHE", str(tmp_path / "cache" / "weights"))
    monkeypatch.setattr(command, "load_features", lambda args: features.replace(resize=args.resize))


def run(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_are_those_of_the_features(capsys, features, data_dir, tmp_path):  # noqa: F811
    sets = ["digits@test[:12]", "digits@test[12:22]"]
    common = ["--data-dir", str(data_dir), "--batch-size", "8"]
    result = run(
        capsys, "fid", *sets, *common, "--metrics", "fid,sfid,kid,is,pr", "--kid-subset-size", "5"
    )
    from googlenet_jax.metrics.images import open_images

    values = []
    for name in sets:
        images = open_images(name, str(data_dir))
        pixels = np.stack([images.read(i) for i in range(len(images))])
        padded = np.concatenate([pixels, pixels])[:16]
        rows = [features.layers(padded[i : i + 8]) for i in (0, 8)]
        values.append(
            {key: np.concatenate([r[key] for r in rows])[: len(pixels)] for key in rows[0]}
        )
    real, generated = values
    for name, layer in (("fid", "pool3"), ("sfid", "spatial")):
        expected = metrics.frechet_distance(
            metrics.statistics_of(real[layer]), metrics.statistics_of(generated[layer])
        )
        assert result[name] == pytest.approx(expected, rel=1e-9)
    kid = metrics.kernel_distance(real["pool3"], generated["pool3"], subset_size=5)
    assert result["kid"] == pytest.approx({"mean": kid.mean, "std": kid.std})
    near = metrics.neighbourhoods(real["pool3"], generated["pool3"])
    assert {key: result[key] for key in near._fields} == near._asdict()
    # Ten images in ten splits: each is its split's mean.
    assert result["is"]["mean"] == pytest.approx(1, abs=1e-5)
    assert result["images"] == [12, 10] and result["resize"] == "tf1"

    stored = str(tmp_path / "real.npz")
    run(capsys, "fid", sets[0], *common, "--output", stored, "--metrics", "fid,sfid")
    again = run(capsys, "fid", stored, sets[1], *common, "--metrics", "fid,sfid")
    assert (again["fid"], again["sfid"]) == (result["fid"], result["sfid"])
    assert main(["fid", stored, sets[1], *common, "--resize", "torch"]) == 1
    assert "expected the same resize, found tf1 and torch" in capsys.readouterr().err
    assert main(["fid", stored, sets[1], *common, "--metrics", "kid"]) == 1
    assert "kid need the images" in capsys.readouterr().err


def test_what_is_known_is_not_computed_again(capsys, data_dir, monkeypatch):
    common = ["fid", "digits@test[:8]", "digits@test[8:16]", "--data-dir", str(data_dir)]
    first = run(capsys, *common, "--batch-size", "8")
    passes = []
    whole = summary.run_batches
    monkeypatch.setattr(summary, "run_batches", lambda *args: passes.append(args) or whole(*args))
    assert run(capsys, *common, "--batch-size", "8") == first
    assert not passes
    assert run(capsys, *common, "--batch-size", "8", "--no-cache")["fid"] == pytest.approx(
        first["fid"], rel=1e-6
    )
    assert len(passes) == 2


def test_what_is_wrong_is_said_in_a_line_before_the_network_runs(capsys, tmp_path, data_dir):
    (tmp_path / "a").mkdir()
    for size in (8, 9):
        Image.new("RGB", (size, size)).save(tmp_path / "a" / f"{size}.png")
    for arguments, match in (
        (["digits@test"], "or one with --output"),
        (["digits@test", str(tmp_path / "b")], "no such folder"),
        ([str(tmp_path / "a"), str(tmp_path / "a")], "--mixed"),
        (["digits@test", "digits@test", "--metrics", "fit"], "did you mean 'fid'"),
    ):
        assert main(["fid", *arguments, "--data-dir", str(data_dir)]) == 1
        error = capsys.readouterr().err
        assert match in error and "Traceback" not in error


def test_features_go_on_where_they_were_stopped(capsys, monkeypatch, tmp_path, data_dir, features):  # noqa: F811
    narrow = TrainedModel(features.model, features.variables)
    monkeypatch.setattr(load, "load", lambda name: narrow)
    monkeypatch.setattr(extract, "PART", 8)
    output = tmp_path / "f.npz"
    common = ["features", "digits@test[:20]", "digits@test[20:23]", "--model", "narrow"]
    common += ["--data-dir", str(data_dir), "--batch-size", "8", "--output", str(output)]
    whole = run(capsys, *common)
    assert whole["shape"] == [23, features(np.zeros((8, 8, 8, 3), np.uint8)).shape[1]]
    with np.load(output) as file:
        expected, names = file["features"], file["names"]
    assert names[0] == "digits@test[:20], example 0" and len(names) == 23

    read = []
    real = extract.batches

    def stopped(images, size, prepare, start):
        read.append(start)
        for count, batch in enumerate(real(images, size, prepare, start)):
            if start == 0 and count == 2:
                raise KeyboardInterrupt
            yield batch

    output.unlink()
    monkeypatch.setattr(extract, "batches", stopped)
    assert main(common) == 130
    assert not output.exists()
    assert main([*common, "--layer", "inception_5b"]) == 1
    assert "left by a command with other" in capsys.readouterr().err
    run(capsys, *common)
    assert read == [0, 16]
    with np.load(output) as file:
        np.testing.assert_allclose(file["features"], expected, rtol=1e-5, atol=1e-6)
    assert not output.with_name("f.npz.partial").exists()
    assert main([*common, "--layer", "pool4"]) == 1
    assert "did you mean 'pool" in capsys.readouterr().err
