"""Merging an adapter into its layer and unmerging it, on every backend."""

import numpy as np
import pytest
import torch
from support import oracle
from support.backends import DEVICE
from support.expected import arithmetic_of, assert_close, f64
from support.problems import DTYPES, make_params, make_x

import road_kernels as rk
from road_kernels.ops import schemas

VARIANTS = ("road_1", "road_2", "road_4")


def expect(weight, theta, alpha, variant, group_size):
    """R W, with the magnitude for the error bound."""
    rows = weight.shape[0]
    r1, r2 = oracle.tables(f64(theta), f64(alpha), variant, rows, group_size)
    matrix = oracle.matrix(oracle.expand(r1, rows, group_size), oracle.expand(r2, rows, group_size), group_size)
    return oracle.Result(matrix @ f64(weight), abs(matrix) @ abs(f64(weight)))


def merge(weight, bias, parameters, backend, unmerge=False, **options):
    theta, alpha, variant, group_size = parameters
    function = rk.road_unmerge if unmerge else rk.road_merge
    options = {"variant": variant, "group_size": group_size, "backend": backend, **options}
    return function(weight, bias, theta, alpha, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size, columns", [(2, 40), (6, 1), (8, 17), (24, 64)])
def test_merge(backend, dtype, variant, group_size, columns):
    weight, bias = make_x(24, columns, dtype=dtype), make_x(24, dtype=dtype, seed=1)
    theta, alpha = make_params(variant, None, 24)
    before = weight.clone()
    merged, merged_bias = merge(weight, bias, (theta, alpha, variant, group_size), backend)
    assert torch.equal(weight, before) and merged.is_contiguous() and merged.dtype == dtype
    assert_close(merged, expect(weight, theta, alpha, variant, group_size), arithmetic_of(dtype))
    want = expect(bias[:, None], theta, alpha, variant, group_size)
    assert_close(merged_bias[:, None], want, arithmetic_of(dtype))
    # In place: the same numbers, in the same memory.
    got, got_bias = merge(weight, bias, (theta, alpha, variant, group_size), backend, inplace=True)
    assert got is weight and got_bias is bias
    assert torch.equal(weight, merged) and torch.equal(bias, merged_bias)


def layouts():
    """Weights [24, 40] that are not contiguous: functions that return the view and its storage."""

    def make(shape, view):
        storage = make_x(*shape)
        return view(storage), storage

    return {
        "columns adjacent": lambda: make((40, 24), lambda s: s.t()),
        "slice of columns": lambda: make((24, 90), lambda s: s[:, 3:43]),
        "slice of rows": lambda: make((30, 40), lambda s: s[5:29]),
        "every second column": lambda: make((24, 80), lambda s: s[:, ::2]),
        "every second row": lambda: make((48, 40), lambda s: s[1::2]),
        "transposed slice": lambda: make((50, 26), lambda s: s[7:47, 1:25].t()),
        "odd offset": lambda: make((24 * 40 + 1,), lambda s: s[1:].view(24, 40)),
        "columns of stride 3, rows of stride 1": lambda: make((40, 3, 24), lambda s: s[:, 1].t()),
    }


@pytest.mark.parametrize("layout", layouts())
def test_any_strides_and_nothing_is_written_outside_the_weight(backend, layout):
    weight, storage = layouts()[layout]()
    theta, alpha = make_params("road_2", None, 24)
    want = expect(weight, theta, alpha, "road_2", 6)
    merged, _ = merge(weight, None, (theta, alpha, "road_2", 6), backend)
    assert_close(merged, want, torch.float32)
    keep = torch.ones_like(storage, dtype=torch.bool)
    keep.as_strided(weight.shape, weight.stride(), weight.storage_offset()).fill_(False)
    before = storage.clone()
    got, _ = merge(weight, None, (theta, alpha, "road_2", 6), backend, inplace=True)
    assert got is weight and torch.equal(weight, merged)
    assert torch.equal(storage[keep], before[keep])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(24, 0), (2, 1), (2, 5), (6, 70000)])
def test_shapes(backend, shape, inplace):
    weight = make_x(*shape)
    theta, alpha = make_params("road_1", None, shape[0])
    want = expect(weight, theta, alpha, "road_1", 2)
    merged, bias = merge(weight, None, (theta, alpha, "road_1", 2), backend, inplace=inplace)
    assert bias is None
    assert_close(merged, want, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("inplace", [False, True])
def test_unmerge_undoes_it_up_to_one_rounding_each(backend, dtype, variant, inplace):
    weight, bias = make_x(24, 40, dtype=dtype), make_x(24, dtype=dtype, seed=1)
    parameters = (*make_params(variant, None, 24), variant, 6)
    layer = merge(weight.clone(), bias.clone(), parameters, backend, inplace=inplace)
    back, back_bias = merge(*layer, parameters, backend, unmerge=True, inplace=inplace)
    # Blocks of make_params have condition numbers below 8.
    rounding = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-15
    torch.testing.assert_close(back, weight, rtol=8 * rounding, atol=16 * rounding)
    torch.testing.assert_close(back_bias, bias, rtol=8 * rounding, atol=16 * rounding)


def test_identity_leaves_every_bit(backend):
    weight = make_x(24, 40, dtype=torch.bfloat16)
    weight[0, 0], weight[3, 0] = -0.0, 0.0
    for function in (rk.road_merge, rk.road_unmerge):
        merged, _ = function(weight, None, torch.zeros(12), torch.ones(12), group_size=6, backend=backend)
        assert torch.equal(merged.view(torch.int16), weight.view(torch.int16))


def test_a_merged_layer_equals_layer_and_adapter(backend):
    layer, x = torch.nn.Linear(16, 24), make_x(3, 16)
    theta, alpha = make_params("road_4", None, 24)
    want = rk.road_apply(layer(x), theta, alpha, variant="road_4", group_size=8, backend=backend)
    weight, bias = merge(layer.weight, layer.bias, (theta, alpha, "road_4", 8), backend)
    assert not weight.requires_grad
    torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), want, rtol=1e-5, atol=1e-5)
    # In place into the parameters themselves, which stay leaves and count the write.
    parameter, version = layer.weight, layer.weight._version
    merge(layer.weight, layer.bias, (theta, alpha, "road_4", 8), backend, inplace=True)
    assert layer.weight is parameter and parameter.requires_grad and parameter.is_leaf and parameter._version > version
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_singular_block_is_refused_and_nothing_written(backend, inplace):
    weight, bias = make_x(24, 5), make_x(24)
    theta, alpha = make_params("road_1", None, 24)
    alpha[7] = 0
    before = weight.clone(), bias.clone()
    with pytest.raises(ValueError, match=r"road_unmerge cannot invert the block of features \(13, 16\): .* is 0"):
        merge(weight, bias, (theta, alpha, "road_1", 6), backend, unmerge=True, inplace=inplace)
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])


@pytest.mark.parametrize("unmerge", [False, True])
def test_bad_arguments(unmerge):
    theta, alpha = make_params("road_1", None, 24)
    parameters = (theta, alpha, "road_1", 6)
    cases = [
        (make_x(24), None, ValueError, r"weight must be \[out, in\], got \[24\]"),
        (make_x(25, 3), None, ValueError, r"first dimension of weight \(25\)"),
        (make_x(24, 3).int(), None, TypeError, "weight must be float16"),
        (make_x(24, 3), make_x(23), ValueError, rf"bias must be \[24\] on {DEVICE}"),
        (make_x(48, 3), None, ValueError, r"theta must be \[24\]"),
    ]
    for weight, bias, error, message in cases:
        with pytest.raises(error, match=message):
            merge(weight, bias, parameters, None, unmerge=unmerge)
    expanded, bias = make_x(24, 1).expand(24, 5), make_x(24)
    before = bias.clone()
    with pytest.raises(ValueError, match=r"weight of shape .* several elements in one place"):
        merge(expanded, bias, parameters, None, unmerge=unmerge, inplace=True)
    with pytest.raises(
        ValueError, match=r"bias of shape .* several elements in one place"
    ):  # the bias is checked before the weight is written
        merge(weight := make_x(24, 5), make_x(1).expand(24), parameters, None, unmerge=unmerge, inplace=True)
    assert torch.equal(weight, make_x(24, 5)) and torch.equal(bias, before)
    other = "cuda" if DEVICE == "cpu" else "cpu"
    with pytest.raises(RuntimeError, match=f"backend '{other}'"):
        merge(make_x(24, 5), None, parameters, other, unmerge=unmerge)


@pytest.mark.parametrize("columns_adjacent", [False, True])
def test_opcheck(columns_adjacent):
    weight = make_x(40, 24).t() if columns_adjacent else make_x(24, 40)
    for r1, r2 in (make_params("table", None, 24), make_params("table_half", None, 24)):
        utils = ("test_schema", "test_faketensor")  # the ops have no gradient
        torch.library.opcheck(schemas.merge, (weight, r1, r2, 6), test_utils=utils)
        torch.library.opcheck(schemas.merge_, (weight.clone(), r1, r2, 6), test_utils=utils)


@pytest.mark.parametrize("function", [rk.road_merge, rk.road_unmerge, rk.road_lora_merge, rk.road_lora_unmerge])
def test_a_bias_in_the_memory_of_the_weight_is_not_written(function):
    weight, (theta, alpha) = make_x(24, 40), make_params("road_1", None, 24)
    lora = (make_x(2, 40), make_x(24, 2)) if "lora" in function.__name__ else ()
    before = weight.clone()
    for bias in (weight[:, 3], weight.view(-1)[:24]):
        with pytest.raises(ValueError, match="bias shares memory with weight, so both cannot be written in place"):
            function(weight, bias, theta, alpha, *lora, group_size=6, inplace=True)
        assert torch.equal(weight, before)
        function(weight, bias, theta, alpha, *lora, group_size=6)
    storage = make_x(25, 40)  # side by side is apart
    function(storage[:24], storage[24, :24], theta, alpha, *lora, group_size=6, inplace=True)


@pytest.mark.wiring
def test_under_compile(backend):
    weight, bias = make_x(24, 40), make_x(24, seed=1)
    theta, alpha = make_params("road_1", 3, 24)
    for inplace in (False, True):
        options = {"group_size": 6, "inplace": inplace, "backend": backend}
        want = rk.road_merge(weight.clone(), bias.clone(), theta[0], alpha[0], **options)
        compiled = torch.compile(rk.road_merge, fullgraph=True, backend="aot_eager")
        got = compiled(weight.clone(), bias.clone(), theta[0], alpha[0], **options)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_under_vmap():
    weight = make_x(24, 40)
    theta, alpha = make_params("road_1", 3, 24)
    bias = make_x(24, seed=1)
    stacked, _ = torch.vmap(lambda t, a: rk.road_merge(weight, bias, t, a, group_size=6))(theta, alpha)
    for k in range(3):
        want, _ = rk.road_merge(weight, None, theta[k], alpha[k], group_size=6)
        np.testing.assert_allclose(f64(stacked[k]), f64(want), 1e-5, 1e-6)
