"""Bad arguments: each raises one sentence that names the argument, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lewel_kernels import AlignAggregate, align_aggregate, dispatch, explain, fused_align_aggregate

BACKENDS = ", ".join(dispatch.BACKENDS)


def good() -> dict[str, Any]:
    return {
        "features": torch.zeros(2, 8, 3, 4),
        "pixels": torch.zeros(2, 6, 3, 4),
        "weight": torch.zeros(4, 6),
        "bias": torch.zeros(4),
        "num_groups": 2,
    }


# What is changed, the exception, and what the sentence must contain: argument, expectation, finding.
BAD: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "features_rank_2": ({"features": torch.zeros(2, 8)}, ValueError, ("features", "(N, C, H, W)", "(2, 8)")),
    "features_rank_5": (
        {"features": torch.zeros(2, 8, 1, 3, 4)}, ValueError, ("features", "(N, C, P)", "(2, 8, 1, 3, 4)"),
    ),
    "features_without_positions": (
        {"features": torch.zeros(2, 8, 0)}, ValueError, ("features", "at least one position", "(2, 8, 0)"),
    ),
    "features_not_a_tensor": ({"features": [[1.0]]}, TypeError, ("features", "Tensor", "list")),
    "features_integer": (
        {"features": torch.zeros(2, 8, 3, 4, dtype=torch.int32)}, TypeError, ("features", "float", "int32"),
    ),
    "features_float8": (
        {"features": torch.zeros(2, 8, 3, 4).to(torch.float8_e4m3fn)}, TypeError, ("features", "float32", "float8"),
    ),
    "features_sparse": (
        {"features": torch.zeros(2, 8, 3, 4).to_sparse()}, TypeError, ("features", "dense", "torch.sparse_coo"),
    ),
    "weight_mkldnn": ({"weight": torch.zeros(4, 6).to_mkldnn()}, TypeError, ("weight", "dense", "torch._mkldnn")),
    "an_image_alone": (
        {"features": torch.zeros(6, 3, 4), "pixels": None}, ValueError, ("weight", "got 6", "leading 1"),
    ),
    "backend_list": ({"backend": ["cpu"]}, ValueError, ("backend", BACKENDS, "['cpu']")),
    "eps_beyond_float32": ({"eps": 1e300}, ValueError, ("eps", "finite in float32", "1e+300")),
    "features_complex": (
        {"features": torch.zeros(2, 8, 3, 4, dtype=torch.complex64)}, TypeError, ("features", "float", "complex64"),
    ),
    "features_bool": (
        {"features": torch.zeros(2, 8, 3, 4, dtype=torch.bool)}, TypeError, ("features", "float", "bool"),
    ),
    "pixels_rank": ({"pixels": torch.zeros(2, 6)}, ValueError, ("pixels", "(N, D, H, W)", "(2, 6)")),
    "pixels_of_other_images": ({"pixels": torch.zeros(3, 6, 3, 4)}, ValueError, ("pixels", "2 images", "got 3")),
    "pixels_of_other_positions": (
        {"pixels": torch.zeros(2, 6, 3, 5)}, ValueError, ("pixels", "12 positions", "got 15"),
    ),
    "pixels_integer": (
        {"pixels": torch.zeros(2, 6, 3, 4, dtype=torch.int64)}, TypeError, ("pixels", "float", "int64"),
    ),
    "pixels_dtype": (
        {"pixels": torch.zeros(2, 6, 3, 4, dtype=torch.float64)}, TypeError, ("pixels", "float32", "float64"),
    ),
    "weight_rank_1": ({"weight": torch.zeros(6)}, ValueError, ("weight", "(K, D)", "(6)")),
    "weight_of_a_3x3_convolution": (
        {"weight": torch.zeros(4, 6, 3, 3)}, ValueError, ("weight", "(K, D, 1, 1)", "(4, 6, 3, 3)"),
    ),
    "weight_width": ({"weight": torch.zeros(4, 5)}, ValueError, ("weight", "D = 6", "got 5", "pixels")),
    "weight_width_without_pixels": (
        {"pixels": None}, ValueError, ("weight", "D = 8", "got 6", "features (pixels is None)"),
    ),
    "weight_dtype": ({"weight": torch.zeros(4, 6).half()}, TypeError, ("weight", "float32", "float16")),
    "weight_integer": ({"weight": torch.zeros(4, 6).long()}, TypeError, ("weight", "float", "int64")),
    "bias_shape": ({"bias": torch.zeros(3)}, ValueError, ("bias", "(4,)", "(3)")),
    "bias_rank": ({"bias": torch.zeros(4, 1)}, ValueError, ("bias", "(4,)", "(4, 1)")),
    "bias_dtype": ({"bias": torch.zeros(4).double()}, TypeError, ("bias", "float32", "float64")),
    "groups_do_not_divide_maps": (
        {"num_groups": 8}, ValueError, ("num_groups", "divide", "maps K", "num_groups 8 and 4"),
    ),
    "groups_do_not_divide_channels": (
        {"features": torch.zeros(2, 9, 3, 4)}, ValueError, ("num_groups", "divide", "channels C", "num_groups 2 and 9"),
    ),
    "no_groups": ({"num_groups": 0}, ValueError, ("num_groups", "at least 1", "got 0")),
    "fractional_groups": ({"num_groups": 2.0}, TypeError, ("num_groups", "int", "float")),
    "temperature_zero": ({"temperature": 0.0}, ValueError, ("temperature", "positive", "got 0.0")),
    "temperature_negative": ({"temperature": -1.0}, ValueError, ("temperature", "positive", "got -1.0")),
    "temperature_nan": ({"temperature": float("nan")}, ValueError, ("temperature", "finite", "got nan")),
    "temperature_of_two": ({"temperature": torch.ones(2)}, TypeError, ("temperature", "number", "tensor (2)")),
    "temperature_bool_tensor": (
        {"temperature": torch.tensor(True)}, TypeError, ("temperature", "number", "torch.bool"),
    ),
    "temperature_to_be_learnt": (
        {"temperature": torch.ones((), requires_grad=True)}, TypeError, ("temperature", "no gradient", "detach"),
    ),
    "temperature_tensor_negative": (
        {"temperature": torch.tensor(-1.0)}, ValueError, ("temperature", "positive", "-1.0"),
    ),
    "temperature_beyond_float64": ({"temperature": 10**400}, ValueError, ("temperature", "finite", "got inf")),
    "groups_bool_tensor": ({"num_groups": torch.tensor(True)}, TypeError, ("num_groups", "int", "torch.bool")),
    "temperature_text": ({"temperature": "1"}, TypeError, ("temperature", "number", "str")),
    "temperature_bool": ({"temperature": True}, TypeError, ("temperature", "number", "got bool")),
    "temperature_beyond_float32": ({"temperature": 3.5e38}, ValueError, ("temperature", "in float32", "3.5e+38")),
    "groups_bool": ({"num_groups": True}, TypeError, ("num_groups", "int", "got bool")),
    "no_maps": ({"weight": torch.zeros(0, 6), "bias": None}, ValueError, ("num_groups", "maps K", "2 and 0")),
    "no_channels": ({"features": torch.zeros(2, 0, 3, 4)}, ValueError, ("num_groups", "channels C", "2 and 0")),
    "eps_negative": ({"eps": -1e-12}, ValueError, ("eps", "at least 0", "got -1e-12")),
    "eps_nan": ({"eps": float("nan")}, ValueError, ("eps", "at least 0", "got nan")),
    "out_dtype_integer": ({"out_dtype": torch.int8}, TypeError, ("out_dtype", "float", "int8")),
    "out_dtype_float8": (
        {"out_dtype": torch.float8_e4m3fn}, TypeError, ("out_dtype", "float16", "float8_e4m3fn"),
    ),
    "no_columns": (
        {"pixels": torch.zeros(2, 0, 9), "features": torch.zeros(2, 8, 9), "weight": torch.zeros(4, 0)},
        ValueError, ("weight", "at least one", "(4, 0)"),
    ),
    "weight_device": (
        {"weight": torch.zeros(4, 6, device="meta")}, ValueError, ("weight must be on cpu", "features", "got meta"),
    ),
    "bias_device": (
        {"bias": torch.zeros(4, device="meta")}, ValueError, ("bias must be on cpu", "features", "got meta"),
    ),
    "pixels_device": (
        {"pixels": torch.zeros(2, 6, 3, 4, device="meta")},
        ValueError, ("pixels must be on cpu", "features", "got meta"),
    ),
    "features_device": (
        {"features": torch.zeros(2, 8, 3, 4, device="meta")},
        ValueError, ("pixels must be on meta", "features", "got cpu"),
    ),
    "unknown_backend": ({"backend": "fpga"}, ValueError, ("backend", BACKENDS, "fpga")),
}  # fmt: skip


def assert_sentence(error: BaseException, words: tuple[str, ...]) -> None:
    message = str(error)
    assert message.removeprefix("the ").startswith(words[0]), f"{message!r} is not about {words[0]}"
    assert all(word in message for word in words), f"{message!r} does not contain all of {words}"
    assert "\n" not in message


@pytest.mark.parametrize("call", [fused_align_aggregate, explain], ids=lambda f: f.__name__)
@pytest.mark.parametrize("change", BAD)
def test_bad_arguments(change: str, call: Callable[..., object]) -> None:
    edits, exception, words = BAD[change]
    with pytest.raises(exception) as caught:
        call(**{**good(), **edits})
    assert_sentence(caught.value, words)


def test_the_good_arguments_are_good() -> None:
    assert fused_align_aggregate(**good()).shape == (2, 2, 8)


def test_dtypes_that_disagree_are_no_error_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_align_aggregate(**{**good(), "weight": torch.zeros(4, 6).half()}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("maps", "num_groups", "exception", "words"),
    [
        (torch.zeros(2, 4), 2, ValueError, ("maps", "(N, K, P)", "(2, 4)")),
        (torch.zeros(3, 4, 3, 4), 2, ValueError, ("maps", "(2, 8, 3, 4)", "(3, 4, 3, 4)")),
        (torch.zeros(2, 4, 3, 5), 2, ValueError, ("maps", "(2, 8, 3, 4)", "(2, 4, 3, 5)")),
        (torch.zeros(2, 4, 3, 4), 3, ValueError, ("num_groups", "maps K", "num_groups 3 and 4")),
        (torch.zeros(2, 6, 3, 4), 3, ValueError, ("num_groups", "channels C of features", "num_groups 3 and 8")),
        (torch.zeros(2, 4, 3, 4).double(), 2, TypeError, ("maps", "float32", "float64")),
        (torch.zeros(2, 4, 3, 4).long(), 2, TypeError, ("maps", "float", "int64")),
        (torch.zeros(2, 4, 3, 4, device="meta"), 2, ValueError, ("maps must be on cpu", "got meta")),
    ],
    ids=["rank", "images", "positions", "groups_and_maps", "groups_and_channels", "dtype", "integer", "device"],
)
def test_bad_arguments_of_the_pooling(
    maps: torch.Tensor, num_groups: int, exception: type[Exception], words: tuple[str, ...]
) -> None:
    with pytest.raises(exception) as caught:
        align_aggregate(torch.zeros(2, 8, 3, 4), maps, num_groups)
    assert_sentence(caught.value, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_dim": 0}, ("in_dim", "at least 1", "got 0")),
        ({"num_maps": 0}, ("num_maps", "at least 1", "got 0")),
        ({"num_maps": 6}, ("num_groups", "divide the number of maps K (num_maps)", "num_groups 4 and 6")),
        ({"num_groups": 2.0}, ("num_groups", "int", "float")),
        ({"temperature": 0}, ("temperature", "positive", "got 0")),
        ({"out_dtype": torch.int8}, ("out_dtype", "float32", "int8")),
        ({"backend": "nope"}, ("backend", BACKENDS, "nope")),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_of_the_module(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(words[0])) as caught:
        AlignAggregate(**{"in_dim": 6, "num_maps": 4, **arguments})
    assert_sentence(caught.value, words)


NUMBERS = {
    "numpy": (np.float32, np.int64),
    "array": (np.array, np.array),
    "tensor": (torch.tensor, torch.tensor),
    "tensor_of_one": (lambda x: torch.tensor([x]), torch.tensor),
    "longdouble": (np.longdouble, np.int8),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_other_kinds_are_numbers(kind: str, compiled: bool) -> None:
    """As in the plain lines, where a tensor may be divided by any."""
    real, whole = NUMBERS[kind]
    if kind == "longdouble" and compiled:
        pytest.skip("torch.compile has no tensors of that type")
    given = {name: torch.randn_like(x) if isinstance(x, torch.Tensor) else x for name, x in good().items()}
    expected = fused_align_aggregate(**{**given, "temperature": 0.5, "eps": 0.25})
    groups = {} if compiled else {"num_groups": whole(2)}
    op = (
        torch.compile(fused_align_aggregate, fullgraph=True, backend="aot_eager") if compiled else fused_align_aggregate
    )
    assert torch.equal(op(**{**given, "temperature": real(0.5), "eps": real(0.25), **groups}), expected)
    assert torch.equal(explained(**{**given, "temperature": real(0.5), "eps": real(0.25), **groups}), expected)


def explained(**arguments: Any) -> torch.Tensor:
    """What the backend gives that explain() names for the same arguments."""
    return fused_align_aggregate(**arguments, backend=explain(**arguments).backend)


def test_a_parameter_is_a_number_where_no_gradient_is_taken() -> None:
    with torch.no_grad():
        found = fused_align_aggregate(**good(), temperature=torch.nn.Parameter(torch.tensor(1.0)))
    assert torch.equal(found, fused_align_aggregate(**good()))


def test_the_op_itself_knows_its_backends() -> None:
    x, weight = torch.zeros(2, 8, 9), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=f"the backend of the op must be one of {BACKENDS}; got 'nope'"):
        torch.ops.lewel_kernels.align_aggregate_fwd(
            x, None, weight, None, None, None, 2, 1.0, 1e-12, torch.float32, False, "nope"
        )


def test_a_temperature_that_a_graph_is_given_is_checked_while_it_runs() -> None:
    op = torch.compile(fused_align_aggregate, fullgraph=True, backend="aot_eager")
    assert op(**good(), temperature=torch.tensor(1.0)).shape == (2, 2, 8)
    with pytest.raises(ValueError, match=r"temperature must be positive and finite in float32; got -1\.0"):
        op(**good(), temperature=torch.tensor(-1.0))


def test_dtypes_of_the_pooling_that_disagree_are_no_error_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert align_aggregate(torch.zeros(2, 8, 9), torch.zeros(2, 4, 9).half(), 2).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight", (4, 5)),
        ("weight", (5, 8)),
        ("pixels", (2, 8, 7)),
        ("pixels", (1, 8, 9)),
        ("bias", (3,)),
        ("grad_pooled", (2, 1, 8)),
        ("grad_maps", (2, 4, 8)),
        ("heat", (2, 4, 1)),
        ("norm", (2, 8)),
    ],
    ids=["columns", "rows", "positions", "images", "bias", "grad_pooled", "grad_maps", "heat", "norm"],
)
def test_the_op_itself_stays_within_bounds(name: str, shape: tuple[int, ...]) -> None:
    """Called without the function that checks, with shapes that disagree."""
    given = {
        "features": (2, 8, 9),
        "pixels": (2, 8, 9),
        "weight": (4, 8),
        "bias": (4,),
        "grad_pooled": (2, 2, 8),
        "grad_maps": (2, 4, 9),
        "heat": (2, 4, 9),
        "norm": (2, 9),
    }
    features, pixels, weight, bias, *gradients, heat, norm = (
        torch.zeros(size) for size in (given | {name: shape}).values()
    )

    def run() -> None:
        inputs, constants, ops = (features, pixels, weight, bias, None, None), (2, 1.0, 1e-12), torch.ops.lewel_kernels
        ops.align_aggregate_fwd(*inputs, *constants, torch.float32, False, "cpu")
        ops.align_aggregate_bwd(
            *gradients, *inputs, heat, norm, *constants, [True, True, True, True, False, False], "cpu"
        )

    with pytest.raises(RuntimeError, match=r"must (have|hold|divide)"):
        run()
