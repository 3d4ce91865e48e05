"""The project's weight files: exact, atomic, and honest about files that are not."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.weights.safetensors import load_weights, read_metadata

OPTIONS: dict[str, Any] = {"num_classes": 3, "width": 0.0625, "aux_heads": False}
MODEL = gj.create_model("googlenet_bn", **OPTIONS)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    key = jax.random.key(0)
    images = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(
        lambda: MODEL.init({"params": key, "dropout": key}, images, train=False)
    )
    rng = np.random.default_rng(0)  # compiling `init` takes longer than all these tests
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture
def path(tmp_path: Path, variables: dict[str, Any]) -> Path:
    gj.save_weights(
        tmp_path / "model.safetensors",
        MODEL,
        variables,
        {"size": 32, "mean": [1.5, 2, 3]},
        ["ant", "bee", "cat"],
    )
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_what_is_saved_is_loaded_to_the_bit(
    tmp_path: Path, variables: dict[str, Any], dtype: Any
) -> None:
    # Transposed views: the file must hold their values, not their memory.
    saved = jax.tree.map(lambda x: np.asfortranarray(x.astype(dtype)), variables)
    gj.save_weights(tmp_path / "w", MODEL, saved)
    model, loaded = load_weights(tmp_path / "w")
    assert model == MODEL
    before, after = flatten_dict(saved), flatten_dict(loaded)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == dtype
        assert after[name].tobytes() == value.tobytes("C"), name


def test_the_header_tells_the_model(path: Path) -> None:
    metadata = read_metadata(path)
    assert metadata["model"] == "googlenet_bn"
    assert metadata["options"]["width"] == 0.0625
    assert metadata["preprocessing"] == {"size": 32, "mean": [1.5, 2, 3]}
    assert metadata["class_names"] == ["ant", "bee", "cat"]


def test_pytorchs_counters_survive(tmp_path: Path, variables: dict[str, Any]) -> None:
    state_dict = gj.weights.to_torch(MODEL, variables) | {
        "conv1.bn.num_batches_tracked": np.int64(12)
    }
    gj.save_weights(tmp_path / "w", MODEL, gj.weights.from_torch(MODEL, state_dict))
    model, loaded = load_weights(tmp_path / "w")
    assert gj.weights.to_torch(model, loaded)["conv1.bn.num_batches_tracked"] == 12


def test_the_same_weights_make_the_same_file(path: Path, tmp_path: Path) -> None:
    model, variables = load_weights(path)
    gj.save_weights(
        tmp_path / "again",
        model,
        variables,
        {"size": 32, "mean": [1.5, 2, 3]},
        ["ant", "bee", "cat"],
    )
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    path: Path, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="can't be written: No space left"):
        gj.save_weights(path, MODEL, variables)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ["one"]}, "class_names must be 3 names, one a class, found 1"),
        ({"class_names": [1, 2, 3]}, r"class_names must be a list of strings, found \[1, 2, 3\]"),
        ({"class_names": ["ant", "bee", None]}, "class_names must be a list of strings"),
        ({"class_names": "abc"}, "class_names must be a list of strings, found 'abc'"),
        ({"class_names": ["ant", "bee", "\ud800"]}, "class_names must be a list of strings"),
        ({"class_names": 3}, "class_names must be a list of strings"),
        ({"preprocessing": [224]}, r"preprocessing: expected an object with fields, found \[224\]"),
        (
            {"preprocessing": {"mean": float("nan")}},
            r"preprocessing\.mean: expected finite numbers",
        ),
        ({"preprocessing": {"sise": 3}}, "did you mean 'size'"),
        ({"preprocessing": {"size": 300}}, r"preprocessing\.resize"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused(
    tmp_path: Path, variables: dict[str, Any], arguments: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        gj.save_weights(tmp_path / "w", MODEL, variables, **arguments)
    assert not any(tmp_path.iterdir())


def test_metadata_of_numpys_types_is_kept_as_plain_values(
    tmp_path: Path, variables: dict[str, Any]
) -> None:
    preprocessing = {
        "size": np.int64(32),
        "mean": np.array([1, 2.5, 3], np.float32),
        "std": (1, 2, 3),
    }
    gj.save_weights(
        tmp_path / "w", MODEL, variables, preprocessing, np.array(["ant", "bee", "cat"])
    )  # type: ignore[arg-type]
    load_weights(tmp_path / "w")
    metadata = read_metadata(tmp_path / "w")
    assert metadata["preprocessing"] == {"size": 32, "mean": [1, 2.5, 3], "std": [1, 2, 3]}
    assert metadata["class_names"] == ["ant", "bee", "cat"]


def with_bias(variables: dict[str, Any], bias: Any) -> dict[str, Any]:
    return {
        **variables,
        "params": {**variables["params"], "head": {**variables["params"]["head"], "bias": bias}},
    }


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (
            np.zeros(3, ml_dtypes.float8_e4m3fn),
            "has dtype float8_e4m3fn, expected one of float64, float32, float16, bfloat16",
        ),
        (np.zeros(3, np.longdouble), f"has dtype {np.dtype(np.longdouble)}, expected one of"),
        (np.zeros(3, np.complex64), "must hold floats"),
        ([[1.0], [2.0, 3.0]], "must be an array of floats, found list"),
        (np.array([None] * 3), "must hold floats"),
        (jax.random.split(jax.random.key(0), 3), "must be an array of floats"),
    ],
    ids=["float8", "longdouble", "complex", "ragged", "objects", "keys"],
)
def test_arrays_that_cannot_be_kept_are_refused(
    tmp_path: Path, variables: dict[str, Any], bias: Any, message: str
) -> None:
    with pytest.raises(UserError, match="'params/head/bias' " + message) as raised:
        gj.save_weights(tmp_path / "w", MODEL, with_bias(variables, bias))
    assert "\n" not in str(raised.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bias",
    [[1.0, 2.0, 3.0], np.arange(3, dtype=">f4"), jax.numpy.arange(3.0)],
    ids=["list", "big-endian", "jax"],
)
def test_arrays_of_other_kinds_are_kept(
    tmp_path: Path, variables: dict[str, Any], bias: Any
) -> None:
    gj.save_weights(tmp_path / "w", MODEL, with_bias(variables, bias))
    _, loaded = load_weights(tmp_path / "w")
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], np.asarray(bias))


@pytest.mark.parametrize(
    "counter",
    [np.zeros(1000), np.float32(3), np.zeros(2, np.int64)],
    ids=["floats", "float", "two"],
)
def test_a_counter_is_one_whole_number(
    tmp_path: Path, path: Path, variables: dict[str, Any], counter: Any
) -> None:
    counted = {**variables, "num_batches_tracked": {"conv1": {"bn": {"count": counter}}}}
    message = "'num_batches_tracked/conv1/bn/count' must be one whole number"
    with pytest.raises(UserError, match=message):
        gj.save_weights(tmp_path / "w", MODEL, counted)
    tensors = {"/".join(parts): value for parts, value in flatten_dict(counted).items()}
    rewrite(path, jax.tree.map(np.asarray, tensors), good_header(path))
    assert message in error_of(path)
    counted["num_batches_tracked"]["conv1"]["bn"]["count"] = jax.numpy.int32(12)
    gj.save_weights(tmp_path / "w", MODEL, counted)
    assert load_weights(tmp_path / "w")[1]["num_batches_tracked"]["conv1"]["bn"]["count"] == 12


@pytest.mark.parametrize("name", ["", ".", "a\0b"])
def test_a_name_that_is_no_files_is_refused(variables: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match="expected the name of a file"):
        gj.save_weights(name, MODEL, variables)


def test_variables_of_another_model_are_refused(tmp_path: Path, variables: dict[str, Any]) -> None:
    with pytest.raises(
        UserError,
        match=r"'batch_stats/conv1/bn/mean' must have shape \[8\] for googlenet_bn, found \[4\]",
    ):
        gj.save_weights(tmp_path / "w", MODEL.clone(width=0.125), variables)
    with pytest.raises(UserError, match="lacks"):
        gj.save_weights(tmp_path / "w", MODEL.clone(aux_heads=True), variables)


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_weights(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    return str(raised.value)


def rewrite(path: Path, tensors: dict[str, np.ndarray], header: Any) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(safetensors.numpy.save(tensors, {"googlenet_jax": text}))


def test_files_that_are_missing_foreign_or_cut_short(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    assert "no such file" in error_of(tmp_path / "nothing")
    error_of(tmp_path)  # a folder
    for part in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        assert "not a whole safetensors file" in error_of(path)
    path.write_bytes(whole + b"x")
    error_of(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    error_of(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}))
    assert "not of googlenet_jax" in error_of(path)


def good_header(path: Path) -> dict[str, Any]:
    return read_metadata(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version must be 1, found 2"),
        ({"version": True}, "format version"),
        (
            {"model": "googlenet_bm"},
            r"unknown model 'googlenet_bm' \(did you mean 'googlenet_bn'\?\)",
        ),
        ({"model": ["googlenet_bn"]}, "'model' must be a name"),
        ({"options": {"stem": ["dense"]}}, "'options' must be an object of plain values"),
        ({"options": {"widht": 1}}, "has no option 'widht'"),
        ({"options": {"width": 0.125, "num_classes": 3, "aux_heads": False}}, "must have shape"),
        ({"options": {"width": 1e300}}, ""),
        ({"options": {"num_classes": 10**30}}, ""),
        ({"class_names": "abc"}, "'class_names' must be a list of names"),
        ({"class_names": ["ant"]}, "class_names must be 3 names, one a class, found 1"),
        (
            {"class_names": [f"class {i}" for i in range(100)]},
            "class_names must be 3 names, one a class, found 100",
        ),
        ({"preprocessing": [1]}, "'preprocessing' must be an object"),
        ({"preprocessing": {"size": -1}}, r"preprocessing\.size: expected a whole number"),
        (
            {"preprocessing": {"size": 10**30, "resize": 10**30}},
            r"preprocessing\.size: expected a whole number",
        ),
        (
            {"preprocessing": {"mean": [10**400, 0, 0]}},
            r"preprocessing\.mean: expected finite numbers",
        ),
        ({"preprocessing": {"std": [1, 0, 1]}}, r"preprocessing\.std"),
        ({"preprocessing": {"channel_order": ["rgb"]}}, r"preprocessing\.channel_order"),
    ],
)
def test_hostile_headers_get_one_line(path: Path, change: dict, message: str) -> None:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(path).items()}
    header = {**good_header(path), **change}
    rewrite(path, tensors, header)
    assert re.search(message, error_of(path))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def test_nested_or_broken_json_gets_one_line(path: Path) -> None:
    for text in ("[" * 100_000, "{", "null", "[]", "\x00"):
        rewrite(path, {"a": np.zeros(1)}, text)
        assert "not a JSON object" in error_of(path)


def test_missing_misshapen_and_integer_tensors_are_named(path: Path) -> None:
    header = good_header(path)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(path).items()}
    without = {name: value for name, value in tensors.items() if name != "params/head/bias"}
    rewrite(path, without, header)
    assert "lacks 1 entry: 'params/head/bias'" in error_of(path)
    rewrite(path, tensors | {"params/head/bias": np.zeros(4, np.float32)}, header)
    assert "'params/head/bias' must have shape [3] for googlenet_bn, found [4]" in error_of(path)
    rewrite(path, tensors | {"params/head/bias": np.zeros(3, np.int64)}, header)
    assert "'params/head/bias' must hold floats" in error_of(path)
    rewrite(path, tensors | {"params/head/bias": np.zeros(3, np.uint8)}, header)
    assert "'params/head/bias' has dtype U8" in error_of(path)
    for stray in ("params/head/bias/", "params", "num_batches_tracked/conv1"):
        rewrite(path, tensors | {stray: np.zeros(3, np.float32)}, header)
        assert f"unexpected 1 entry: '{stray}'" in error_of(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_changed_header_byte_is_an_error_or_harmless(
    path: Path, position: int, byte: int
) -> None:
    whole = bytearray(path.read_bytes())
    damaged = bytearray(whole)
    damaged[position] = byte
    other = path.with_name("damaged")
    other.write_bytes(damaged)
    try:
        load_weights(other)
    except UserError as error:
        assert "\n" not in str(error)
