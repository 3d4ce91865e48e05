"""`bench`: processes in turn, and the figures that follow from what they measured."""

import json

import pytest

from googlenet_jax.cli import bench
from googlenet_jax.cli.main import main
from googlenet_jax.profiling import speed


def measured(seconds: list[float], cpu: float, **more) -> dict:
    return {
        "seconds": seconds,
        "cpu_seconds": [cpu] * len(seconds),
        "compile_seconds": 9.0,
        "peak_bytes": 3_000_000_000,
        "device": "cpu",
        **more,
    }


@pytest.fixture
def sides() -> dict[str, dict]:
    """What the process of each side measures."""
    machine = dict.fromkeys(("peak_operations_per_second", "copy_bytes_per_second"), 200.0)
    machine["peak_operations_per_cpu_second"] = 100.0
    ours = measured([2.0, 2.5, 3.0], 4.0, operations=100, tuned=["a flag"], **machine)
    return {
        "googlenet_jax": ours,
        "torch": measured([5.0, 5.0], 9.0),
        "torch_compiled": measured([4.0, 6.0, 4.0], 10.0),
    }


@pytest.fixture
def processes(monkeypatch, sides) -> list[str]:
    """The sides whose processes were started, in order."""
    started = []

    def child(args, side):
        started.append(side)
        return sides[side]

    monkeypatch.setattr(bench, "_child", child)
    return started


def test_sides_are_measured_in_turn_and_compared_with_the_faster_peer(processes, capsys):
    command = ["bench", "train", "googlenet_bn", "--batch-size", "10", "--peer", "torch", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert processes == ["googlenet_jax", "torch", "torch_compiled"] * 2
    ours = result["sides"]["googlenet_jax"]
    assert ours["images_per_second"] == 10 / 2.5
    assert ours["step_seconds"] == {"median": 2.5, "least": 2.0, "most": 3.0}
    # 100 operations at 200 a second are half a second.
    assert result["floor_images_per_second"] == 20 and result["fraction_of_floor"] == 0.2
    assert result["fraction_of_floor_by_cpu_seconds"] == 0.25
    assert result["peer"] == "torch_compiled" and result["ratio"] == 4 / 2.5
    assert "PyTorch's layers" in result["peer_network"]
    assert result["ratio_by_cpu_seconds"] == 9 / 4


def test_a_gpu_is_not_compared_with_a_cpu(processes, sides, capsys):
    sides["googlenet_jax"]["device"] = "NVIDIA H200"
    command = ["bench", "train", "googlenet_bn", "--peer", "torch", "--rounds", "1"]
    assert main(command) == 1
    assert "found googlenet_jax on NVIDIA H200, torch on cpu" in capsys.readouterr().err
    for side in sides.values():
        side["device"] = "NVIDIA H200"
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] == 4 / 2.5  # the host's CPU seconds say nothing there
    assert not [name for name in result if name.endswith("by_cpu_seconds")]


def test_for_people_there_is_a_table(processes, capsys):
    assert main(["bench", "infer", "googlenet_bn", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert processes == ["googlenet_jax"]
    assert "infer googlenet_bn, batch 32, float32" in text
    assert "20 % of it" in text and text.endswith("set for both sides: a flag\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["googlenit"], "unknown model 'googlenit' (did you mean 'googlenet'?)"),
        (["googlenet_slim", "--peer", "torch"], "there is no PyTorch form of googlenet_slim"),
        (["googlenet", "--batch-size", "0"], "--batch-size: "),
        (["googlenet", "--layers", "--peer", "torch"], "--layers: expected "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(processes, capsys, arguments, message):
    assert main(["bench", "train", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not processes


MODULE = """
import flax.linen as nn
import googlenet_jax as gj
from googlenet_jax.models.googlenet import PLAIN
from googlenet_jax.models.network import Output

class Mean(gj.Network):
    style = PLAIN
    input_size = 8

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None):
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        return self.finish(layers, "pool", layers.conv("conv", x, 4))

gj.register_model("mean", Mean)
"""


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    """`bench train`, of a network of one's own."""
    (tmp_path / "mean_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return ["bench", "train", "mean", "--import=mean_module", "--batch-size=2", "--steps=1"]


def test_a_registered_network_is_measured_in_a_process(command, capsys):
    assert main([*command, "--rounds=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["operations"] == 2 * 2 * (3 * (8 * 8 * 3 * 4 + 4 * 1000) - 8 * 8 * 3 * 4)


def test_layers_are_timed_one_by_one(command, monkeypatch, capsys):
    monkeypatch.setattr("googlenet_jax.runtime.process.prepare", tuple)
    monkeypatch.setattr(speed, "PEAK_SIZE", 64)
    monkeypatch.setattr(speed, "COPY_BYTES", 1 << 16)
    assert main([*command, "--side=layers"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][:1] == ["conv"]
    assert rows[0]["forward_floor_ms"] == rows[0]["backward_floor_ms"] > 0
    assert rows[0]["forward_cpu_ms"] > 0
