"""Lines go in whole, come out as they were, and are cut back without losing what should stay."""

import json
import time

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from googlenet_jax.errors import UserError
from googlenet_jax.training import writers
from googlenet_jax.training.writers import create_writer, cut_back, read_metrics


def train_line(step, **more):
    parts = {"loss_main": 1.0, "learning_rate": 0.1, "images_per_second": 10.0}
    return {
        "step": step,
        "epoch": step / 10,
        "split": "train",
        "loss": 1.5,
        "top1": 0.25,
        **parts,
        **more,
    }


def eval_line(step, weights="raw"):
    return {
        "step": step,
        "epoch": step / 10,
        "split": "test",
        "loss": 1.25,
        "top1": 0.5,
        "examples": 360,
        "weights": weights,
    }


LINES = [train_line(5), eval_line(5), eval_line(5, "ema"), train_line(10), eval_line(10)]


def write(workdir, lines, step=0):
    writer = create_writer(workdir, step)
    for line in lines:
        writer.write(line)
    writer.close()


def test_lines_come_back_and_appear_at_once(tmp_path):
    writer = create_writer(tmp_path, 0)
    for count, line in enumerate(LINES, start=1):
        writer.write(line)
        assert read_metrics(tmp_path / "metrics.jsonl") == LINES[:count]
    writer.close()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    write(tmp_path, LINES)
    assert list(tmp_path.iterdir()) == []


def test_curves_and_events_are_written(tmp_path):
    write(tmp_path, LINES)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    scalars = read_events(tmp_path / "tensorboard")
    assert (
        len(scalars) == 2 * 5 + 3 * 2
    )  # five fields a training line, loss and top1 an evaluation line
    assert {
        ("learning_rate/train", 5, 0.1),
        ("learning_rate/train", 10, 0.1),
        ("loss/test_ema", 5, 1.25),
        ("top1/test_raw", 10, 0.5),
    } <= set(scalars)
    assert not list(tmp_path.glob(".*"))


def read_events(folder):
    """(tag, step, value) of each scalar: an event file is records of length, checksum, bytes,
    checksum.
    """
    scalars = []
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            scalars += [
                (value.tag, event.step, round(value.simple_value, 6))
                for value in event.summary.value
            ]
            content = content[16 + length :]
    return scalars


@pytest.mark.parametrize(("seconds", "drawn"), [(0, [2, 3, 5, 5]), (3600, [2, 5])])
def test_curves_are_drawn_at_evaluations_and_at_the_end(tmp_path, monkeypatch, seconds, drawn):
    lengths = []
    monkeypatch.setattr(
        writers,
        "draw_curves",
        lambda runs, path: lengths.append(len(runs[tmp_path.name])) or path.write_bytes(b""),
    )
    monkeypatch.setattr(writers, "SECONDS_BETWEEN_CURVES", seconds)
    write(tmp_path, LINES)
    assert lengths == drawn


@given(
    steps=st.lists(st.integers(0, 30)),
    step=st.integers(0, 30),
    tail=st.sampled_from(["", '{"step": 3', "\x00\x00", '{"step": 1, "split": "train"}']),
)
def test_cut_back_keeps_exactly_the_lines_up_to_the_step(tmp_path_factory, steps, step, tail):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [train_line(number) for number in steps]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    cut_back(path, step)
    assert read_metrics(path) == [line for line in lines if line["step"] <= step]
    assert path.read_text() == "".join(
        json.dumps(line) + "\n" for line in lines if line["step"] <= step
    )


def test_cut_back_leaves_the_old_file_when_it_cannot_finish(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        cut_back(path, 0)
    assert read_metrics(path) == LINES[:1]


@pytest.mark.parametrize(
    "torn", ['{"step": 20, "split": "prüfung'.encode()[:-6], b"\xff\xfe", b"\0"]
)
def test_a_torn_last_line_that_is_no_text_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in LINES)
    path.write_bytes(whole.encode() + torn)
    cut_back(path, 10)
    assert path.read_text() == whole


def test_cut_back_of_nothing(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "broken",
    [
        '{"step": 5',
        "[]",
        '{"split": "train"}',
        '{"step": 5, "split": "train", "loss": 1.0}',  # no epoch
        '{"step": 5, "epoch": 1, "split": ["train"]}',
        '{"step": true, "epoch": 1, "split": "train"}',
        '{"step": 5, "epoch": 1, "split": "train", "loss": "low"}',
        '{"step": 5, "epoch": 1, "split": "train", "top1": null}',
        '{"step": 5, "epoch": 1, "split": "train", "loss": NaN}',
        '{"step": 5, "epoch": 1, "split": "train", "loss": 1e999}',
        '{"step": 5, "epoch": 1, "split": "train", "loss": 1' + "0" * 400 + "}",
        '{"step": 5000000000, "epoch": 1, "split": "train"}',
        '{"step": 5, "epoch": 1, "split": "test", "weights": "best"}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:70],
)
def test_a_broken_line_inside_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([json.dumps(LINES[0]), broken, json.dumps(LINES[1])]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_the_bar_moves_while_the_first_step_compiles(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writers, "shows_progress", lambda: True)
    log = writers.TrainingLog(
        writers.Writer(),
        logs=lambda step: False,
        epoch=10,
        batch_size=4,
        start=0,
        total=20,
        interval={},
    )
    time.sleep(2.3)
    log.push(1, {"loss": jnp.float32(1.0), "learning_rate": jnp.float32(0.1)})
    log.flush("saving")
    time.sleep(1.2)
    log.close()
    shown = capsys.readouterr().err
    assert "compiling, 1 s" in shown and "compiling, 2 s" in shown and "compiling, 3 s" not in shown
    assert shown.rindex("saving") > shown.rindex("compiling")


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl in it"):
        read_metrics(tmp_path / "metrics.jsonl")
