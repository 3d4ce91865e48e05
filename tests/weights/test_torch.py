"""State dicts to variables and back."""

import functools
import logging
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.verification.reference import NETWORKS
from googlenet_jax.weights.pytorch import torch_names

TORCHVISIONS_UNIT = (
    "conv.weight",
    *(
        f"bn.{part}"
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ),
)
NARROW: dict[str, Any] = {"width": 0.125, "num_classes": 5}


def pair(name: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model and a random state dict of its reference."""
    network = NETWORKS[name](**NARROW, **options)
    state_dict = {
        key: torch.randn(value.shape) if value.is_floating_point() else value + 7
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(state_dict, strict=True)
    if options.pop("side", 0):
        options["fully_connected_head"] = True
    return gj.create_model(name, **NARROW, **options), state_dict


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NETWORKS),
        ("googlenet", {"stem": "separable"}),
        ("googlenet_torchvision", {"aux_heads": False, "side": 3}),
    ],
)
def test_round_trip_loses_nothing(name: str, options: dict) -> None:
    model, state_dict = pair(name, **options)
    variables = gj.weights.from_torch(model, state_dict)
    assert set(variables) <= {"params", "batch_stats", "num_batches_tracked"}
    back = gj.weights.to_torch(model, variables)
    assert set(back) == set(state_dict)
    for key, value in state_dict.items():
        assert back[key].dtype == value.numpy().dtype
        np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)
    NETWORKS[name](**NARROW, **options).load_state_dict(
        {key: torch.from_numpy(value) for key, value in back.items()}, strict=True
    )


def test_torchvisions_state_dict_has_its_names() -> None:
    model = gj.create_model("googlenet_torchvision")
    names = gj.weights.to_torch(model, shapes_as_zeros(model))
    assert len(names) == 364
    # The order of torchvision's own state dict.
    assert list(names)[:7] == [f"conv1.{part}" for part in TORCHVISIONS_UNIT] + [
        "conv2.conv.weight"
    ]
    heads = [
        f"{layer}.{part}" for layer in ("aux2.fc1", "aux2.fc2", "fc") for part in ("weight", "bias")
    ]
    assert list(names)[-12:] == [*(f"aux2.conv.{part}" for part in TORCHVISIONS_UNIT), *heads]
    assert {
        "conv1.conv.weight",
        "inception4e.branch3.1.bn.running_var",
        "aux2.fc1.weight",
        "fc.bias",
    } <= set(names)
    assert names["inception3a.branch3.1.conv.weight"].shape == (32, 16, 3, 3)
    without = gj.create_model("googlenet_torchvision", aux_heads=False)
    assert len(gj.weights.to_torch(without, shapes_as_zeros(without))) == 344


def shapes_as_zeros(model: Any) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict

    from googlenet_jax.weights.tree import expected_shapes

    return unflatten_dict(
        {path: np.zeros(shape, np.float32) for path, shape in expected_shapes(model).items()}
    )


def test_names_are_torchvisions() -> None:
    names = {
        "/".join(path): name
        for path, name in torch_names(gj.create_model("googlenet_torchvision")).items()
    }
    assert names["params/conv2_reduce/kernel"] == "conv2.conv.weight"
    assert (
        names["batch_stats/inception_3b/conv_5x5/bn/mean"]
        == "inception3b.branch3.1.bn.running_mean"
    )
    assert names["params/aux1/head/bias"] == "aux1.fc2.bias"
    naive = {
        "/".join(path): name
        for path, name in torch_names(gj.create_model("googlenet_naive")).items()
    }
    assert naive["params/inception_3b/conv_5x5/bias"] == "inception3b.branch3.conv.bias"


def test_aux_entries_are_dropped_with_a_note_where_the_model_has_no_heads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, state_dict = pair("googlenet_torchvision")
    model = gj.create_model("googlenet_torchvision", aux_heads=False, **NARROW)
    with caplog.at_level(logging.WARNING):
        variables = gj.weights.from_torch(model, state_dict)
    assert "aux1" not in variables["params"]
    assert "20 entries" in caplog.text


def test_missing_aux_entries_are_named() -> None:
    model, state_dict = pair("googlenet")
    main = {key: value for key, value in state_dict.items() if not key.startswith("aux")}
    with pytest.raises(
        UserError, match=r"lacks 12 entries: 'aux1.conv.conv.bias'.*aux_heads=False"
    ):
        gj.weights.from_torch(model, main)


def change(state_dict: dict[str, Any], remove: str = "", **add: Any) -> dict[str, Any]:
    return {key: value for key, value in state_dict.items() if key != remove} | {
        key.replace("_dot_", "."): v for key, v in add.items()
    }


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s: change(s, "fc.bias", fc_dot_biass=s["fc.bias"]), r"lacks 1 entry: 'fc.bias' \(did you mean 'fc.biass'.*has unexpected"),
        (lambda s: change(s, spurious=s["fc.bias"]), r"has unexpected 1 entry: 'spurious'"),
        (lambda s: change(s, fc_dot_weight=s["fc.weight"].T), r"'fc.weight' must have shape \[5, 128\] for googlenet_bn, found \[128, 5\]"),
        (lambda s: change(s, fc_dot_bias=[0.0] * 5), r"'fc.bias' must be a tensor or an array, found list"),
        (lambda s: change(s, fc_dot_bias=torch.zeros(5, dtype=torch.int32)), r"'fc.bias' must hold floats, found int32"),
        (lambda s: list(s), r"pass module.state_dict\(\)"),
        (lambda s: {**s, 3: s["fc.bias"]}, r"unexpected 1 entry: '3'"),
    ],
    ids=["renamed", "extra", "misshapen", "not an array", "integers", "no mapping", "no name"],
)  # fmt: skip
def test_what_does_not_fit_is_named(broken: Any, message: str) -> None:
    model, state_dict = pair("googlenet_bn")
    with pytest.raises(UserError, match=message) as raised:
        gj.weights.from_torch(model, broken(state_dict))
    assert "\n" not in str(raised.value)


BIAS = torch.tensor([1.0, -2.0, 0.5, 3.0, -0.25])  # exact in every float type


@pytest.mark.parametrize(
    ("bias", "dtype"),
    [
        (BIAS.to(torch.float8_e4m3fn), ml_dtypes.float8_e4m3fn),
        (BIAS.to(torch.float8_e5m2), ml_dtypes.float8_e5m2),
        (torch._neg_view(-BIAS), np.float32),  # pyright: ignore
        (torch.complex(BIAS, -BIAS).conj().imag, np.float32),
        (torch.nn.Parameter(BIAS), np.float32),
        (torch.stack([BIAS, BIAS])[0], np.float32),
    ],
    ids=[
        "float8_e4m3fn",
        "float8_e5m2",
        "negative bit",
        "part of a conjugate",
        "parameter",
        "view",
    ],
)
def test_tensors_of_other_kinds_are_read_right(bias: torch.Tensor, dtype: Any) -> None:
    model, state_dict = pair("googlenet_bn")
    found = gj.weights.from_torch(model, change(state_dict, fc_dot_bias=bias))["params"]["head"][
        "bias"
    ]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float32), BIAS.numpy())


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BIAS.to("meta"), "dense tensor with values, found one that is on the meta device"),
        (lambda: BIAS.to_sparse(), "dense tensor with values, found one that is sparse_coo"),
        (
            lambda: torch.quantize_per_tensor(BIAS, 0.1, 0, torch.qint8),
            "dense tensor with values, found one that is quantised",
        ),
        (
            lambda: torch.zeros(5, dtype=torch.float4_e2m1fn_x2),
            "of dtype float4_e2m1fn_x2 can't be read",
        ),
    ],
    ids=["meta", "sparse", "quantised", "float4"],
)
def test_tensors_without_plain_values_are_named(make: Any, message: str) -> None:
    model, state_dict = pair("googlenet_bn")
    with pytest.raises(UserError, match=f"'fc.bias' (must be a )?{message}") as raised:
        gj.weights.from_torch(model, change(state_dict, fc_dot_bias=make()))
    assert "\n" not in str(raised.value)


def test_a_counter_that_is_none_is_named() -> None:
    model, state_dict = pair("googlenet_bn")
    with pytest.raises(
        UserError,
        match=r"'conv1.bn.num_batches_tracked' must be one whole number, found float32 \[1000\]",
    ):
        gj.weights.from_torch(
            model, {**state_dict, "conv1.bn.num_batches_tracked": torch.zeros(1000)}
        )
    cast = gj.weights.from_torch(model, {name: value.float() for name, value in state_dict.items()})
    assert cast["num_batches_tracked"]["conv1"]["bn"]["count"] == 7


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float64], ids=str
)
def test_every_float_type_goes_back_exactly_and_pytorch_takes_it(dtype: torch.dtype) -> None:
    model, state_dict = pair("googlenet_plain")
    given = {key: value.to(dtype) for key, value in state_dict.items()}
    back = gj.weights.to_torch(model, gj.weights.from_torch(model, given))
    tensors = {key: torch.from_numpy(value) for key, value in back.items()}
    NETWORKS["googlenet_plain"](**NARROW).load_state_dict(tensors, strict=True)
    for key, value in given.items():
        assert tensors[key].dtype == (
            dtype if dtype in (torch.float16, torch.float64) else torch.float32
        )
        assert torch.equal(tensors[key].double(), value.double()), key


def test_a_float_type_that_pytorch_lacks_is_named() -> None:
    model, state_dict = pair("googlenet_plain")
    variables = gj.weights.from_torch(model, state_dict)
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"].astype(np.longdouble)
    with pytest.raises(UserError, match=r"'params/head/bias' has dtype \w+, which PyTorch lacks"):
        gj.weights.to_torch(model, variables)


def test_a_misshapen_fully_connected_head_is_named() -> None:
    model, state_dict = pair("googlenet", side=2)
    with pytest.raises(UserError, match=r"'fc.weight' must have shape"):
        gj.weights.from_torch(model, change(state_dict, fc_dot_weight=torch.zeros(5, 128 * 3)))


def test_counters_are_zero_where_not_given_and_bfloat16_stays() -> None:
    model, state_dict = pair("googlenet_bn")
    given = {
        key: value.bfloat16()
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }
    variables = gj.weights.from_torch(model, given)
    assert "num_batches_tracked" not in variables
    assert variables["params"]["head"]["kernel"].dtype == ml_dtypes.bfloat16
    back = gj.weights.to_torch(model, variables)
    assert back["conv1.bn.num_batches_tracked"] == 0
    np.testing.assert_array_equal(
        back["fc.weight"].astype(np.float32), given["fc.weight"].float().numpy()
    )


def test_the_result_is_a_copy_that_the_model_runs_on() -> None:
    model, state_dict = pair("googlenet_bn")
    variables = gj.weights.from_torch(model, state_dict)
    before = variables["params"]["head"]["bias"].copy()
    state_dict["fc.bias"].zero_()
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], before)
    apply = jax.jit(functools.partial(model.apply, train=False))
    assert apply(variables, np.zeros((1, 32, 32, 3), np.float32)).logits.shape == (1, 5)


def test_variables_that_do_not_fit_are_named() -> None:
    model, state_dict = pair("googlenet_plain")
    variables = gj.weights.from_torch(model, state_dict)
    variables["params"]["head"]["bias"] = np.zeros(4, np.float32)
    with pytest.raises(
        UserError,
        match=r"'params/head/bias' must have shape \[5\] for googlenet_plain, found \[4\]",
    ):
        gj.weights.to_torch(model, variables)
    del variables["params"]["head"]["bias"]
    with pytest.raises(UserError, match=r"lacks 1 entry: 'params/head/bias'"):
        gj.weights.to_torch(model, variables)
    with pytest.raises(UserError, match="must be a dictionary"):
        gj.weights.to_torch(model, {})
