"""`googlenet-jax summary`: what it prints for a person and as JSON."""

import argparse
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from googlenet_jax.cli import summary
from googlenet_jax.errors import UserError


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    summary.add_parser(parser.add_subparsers())
    return summary.run(parser.parse_args(["summary", *argv]))


def lines_by_name(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines() if line}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that holds every table's columns side by side."""
    monkeypatch.setenv("COLUMNS", "220")


def test_googlenet_stands_beside_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("googlenet") == 0
    lines = lines_by_name(capsys.readouterr().out)
    assert (
        lines["inception_3a"]
        == "inception_3a 28×28×256 2 163,696 128,049,152 28×28×256 159.5K 159K 128.0M 128M equal"
    )
    assert lines["inception_4c"].endswith("497.5K 463K 99.9M 100M weights -6.9 %")
    assert lines["inception_5a"].endswith("weights +5.3 %, multiply-adds +5.7 %")
    assert lines["conv2"].endswith("equal (with conv2_reduce)")
    assert lines["conv1"].endswith("(the paper's row fits the separable stem)")
    assert lines["total without aux heads"].endswith("22 6,998,552 1,582,671,872")
    assert lines["total with aux heads"].endswith("13,378,280 1,591,044,096")


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    run("googlenet", "--stem", "separable", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["depth"] == 23  # the separable stem's two products are two layers
    assert result["model"]["stem"] == "separable"
    assert [row["layers"][-1] for row in result["printed"]["rows"] if not row["equal"]] == [
        f"inception_{m}" for m in ("4a", "4c", "4d", "4e", "5a", "5b")
    ]
    assert result["totals"]["with_aux"]["parameters"] == sum(
        row["parameters"] for row in result["rows"]
    )


@pytest.mark.parametrize(
    "options",
    [["--width", "0.5"], ["--num-classes", "10"], ["--size", "128"], ["--stem", "small"]],
)
def test_table_1_is_for_the_papers_network_alone(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run("googlenet", "--json", *options)
    assert "printed" not in json.loads(capsys.readouterr().out)


def test_no_aux(capsys: pytest.CaptureFixture[str]) -> None:
    run("googlenet", "--no-aux")
    text = capsys.readouterr().out
    assert "aux" not in text
    assert lines_by_name(text)["total"].endswith("22 6,998,552 1,582,671,872")


def test_compare_marks_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    run("googlenet", "--compare", "googlenet_torchvision")
    lines = lines_by_name(capsys.readouterr().out)
    assert lines["inception_3a"].endswith("parameters, multiply-adds")
    assert lines["norm1"].endswith("only in googlenet")
    assert lines["head"].endswith("1,024,000")
    run("googlenet", "--compare", "googlenet_torchvision", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [entry["model"]["name"] for entry in result["models"]] == [
        "googlenet",
        "googlenet_torchvision",
    ]
    assert "norm1" in result["different"] and "head" not in result["different"]


def test_options_are_given_as_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    run(
        "inception_v3",
        "--json",
        "--size",
        "75",
        "--no-aux",
        "--option",
        "flavour=slim",
        "--option",
        "width=0.5",
    )
    given = json.loads(capsys.readouterr().out)["model"]
    assert (given["flavour"], given["width"]) == ("slim", 0.5)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(UserError, match="at least 31"):
        run("googlenet", "--size", "8")
    with pytest.raises(UserError, match="--size: expected a whole number of at least 1"):
        run("googlenet", "--size", "0")
    with pytest.raises(UserError, match="stem"):
        run("googlenet_bn", "--stem", "separable")


@given(
    st.lists(st.sampled_from("abcdef"), unique=True),
    st.lists(st.sampled_from("abcdef"), unique=True),
)
def test_align_keeps_every_name_once_and_the_first_order(
    names: list[str], others: list[str]
) -> None:
    merged = summary.align(names, others)
    assert sorted(merged) == sorted({*names, *others})
    assert [name for name in merged if name in names] == names


def test_table_is_aligned() -> None:
    text = summary.table(["name", "count"], [["a", "1"], ["longer", "1,000"], ["short"]], left=(0,))
    assert text.splitlines() == [
        "name    count",
        "──────  ─────",
        "a           1",
        "longer  1,000",
        "short",
    ]
