"""Every bad input raises with its message, before anything is written."""

import pytest
import torch
from support.problems import apply, make_params, make_x

import road_kernels as rk
from road_kernels.ops import checks
from road_kernels.python_fallback.rotate import bank_index

X = make_x(4, 3, 8)
THETA, ALPHA = make_params("road_1", None, 8)
BANK = make_params("road_1", 3, 8)
IDS = torch.tensor([0, 2, -1, 1])
META = {"device": "meta"}

# name: (changes to the arguments of road_apply, the error, a pattern of its message)
SINGLE = {
    "x is no tensor": ({"x": [1.0, 2.0]}, TypeError, "x must be a torch.Tensor, got list"),
    "x is an integer tensor": ({"x": X.long()}, TypeError, r"x must be float16, .* got torch.int64"),
    "x is complex": ({"x": X.to(torch.complex64)}, TypeError, r"x must be float16, .* got torch.complex64"),
    "x is sparse": ({"x": X.to_sparse()}, TypeError, "x must be a dense"),
    "x is nested": ({"x": torch.nested.nested_tensor([torch.ones(2, 8)])}, TypeError, "x must be a dense .* nested"),
    "x has no dimension": ({"x": torch.tensor(1.0)}, ValueError, r"x must be \[\.\.\., D\]"),
    "x is 0 wide": ({"x": torch.empty(3, 0)}, ValueError, r"group_size must be even.*\(0\), got 4"),
    "odd group_size": ({"group_size": 3}, ValueError, "group_size must be even, positive and divide .* got 3"),
    "zero group_size": ({"group_size": 0}, ValueError, "got 0"),
    "negative group_size": ({"group_size": -2}, ValueError, "got -2"),
    "group_size does not divide": ({"group_size": 6}, ValueError, r"divide the last dimension of x \(8\), got 6"),
    "group_size over D": ({"group_size": 16}, ValueError, "got 16"),
    "huge group_size": ({"group_size": 2**70}, ValueError, "group_size"),
    "float group_size": ({"group_size": 4.0}, TypeError, "group_size must be an int, got float"),
    "bool group_size": ({"group_size": True}, TypeError, "group_size must be an int, got bool"),
    "unknown variant": (
        {"variant": "road_3"},
        ValueError,
        "variant must be 'road_1', 'road_2' or 'road_4', got 'road_3'",
    ),
    "variant is a form": ({"variant": "table"}, ValueError, "variant must be"),
    "variant is no string": ({"variant": 1}, ValueError, "variant must be .* got 1"),
    "theta is no tensor": ({"theta": 0.5}, TypeError, "theta must be a torch.Tensor, got float"),
    "alpha is None": ({"alpha": None}, TypeError, "alpha must be a torch.Tensor, got NoneType"),
    "theta is an integer tensor": ({"theta": THETA.int()}, TypeError, "theta must be float16"),
    "theta has another length": (
        {"theta": torch.zeros(8)},
        ValueError,
        r"theta must be \[4\] for variant 'road_1' and D = 8, got \[8\]",
    ),
    "length of another variant": ({"variant": "road_4"}, ValueError, r"theta must be \[16\] for variant 'road_4'"),
    "theta is a bank": ({"theta": BANK[0], "alpha": BANK[1]}, ValueError, r"theta must be \[4\] .* got \[3, 4\]"),
    "alpha has another length": ({"alpha": torch.zeros(3)}, ValueError, r"alpha must be \[4\]"),
    "theta on another device": (
        {"theta": THETA.to(**META)},
        ValueError,
        rf"theta must be on the device of x \({X.device}\), got meta",
    ),
    "unknown backend": (
        {"backend": "metal"},
        ValueError,
        "backend must be one of 'cuda', 'cpu', 'triton', 'python', got 'metal'",
    ),
}

BATCHED = {
    "theta is no bank": ({"theta": THETA, "alpha": ALPHA}, ValueError, r"theta must be \[A, 4\] .* got \[4\]"),
    "banks of two sizes": (
        {"alpha": BANK[1][:2]},
        ValueError,
        r"alpha must have the shape of theta, \[3, 4\], got \[2, 4\]",
    ),
    "ids are no tensor": ({"adapter_ids": [0, 1, 2, 0]}, TypeError, "adapter_ids must be a torch.Tensor, got list"),
    "float ids": ({"adapter_ids": IDS.float()}, TypeError, "adapter_ids must be int32 or int64, got torch.float32"),
    "bool ids": ({"adapter_ids": IDS > 0}, TypeError, "adapter_ids must be int32 or int64, got torch.bool"),
    "ids on another device": ({"adapter_ids": IDS.to(**META)}, ValueError, "adapter_ids must be on the device of x"),
    "too few ids": ({"adapter_ids": IDS[:3]}, ValueError, r"must be a prefix of \[4, 3\] .* got \[3\]"),
    "ids of the second dimension": ({"adapter_ids": IDS[:3]}, ValueError, "prefix"),
    "ids as wide as x": ({"adapter_ids": torch.zeros(4, 3, 8, dtype=torch.int64)}, ValueError, "prefix"),
    "ids of shape [B, 1]": ({"adapter_ids": IDS[:, None]}, ValueError, r"prefix .* got \[4, 1\]"),
}


def check(function, arguments, error, message):
    x = arguments["x"]
    before = x.clone() if isinstance(x, torch.Tensor) else None
    for inplace in (False, True):
        with pytest.raises(error, match=message):
            function(**arguments, inplace=inplace)
    if before is not None and not x.is_nested:
        torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize(("change", "error", "message"), SINGLE.values(), ids=SINGLE.keys())
def test_bad_arguments_of_road_apply(change, error, message):
    check(rk.road_apply, {"x": X.clone(), "theta": THETA, "alpha": ALPHA, "group_size": 4, **change}, error, message)


@pytest.mark.parametrize(("change", "error", "message"), BATCHED.values(), ids=BATCHED.keys())
def test_bad_arguments_of_road_apply_batched(change, error, message):
    arguments = {"x": X.clone(), "theta": BANK[0], "alpha": BANK[1], "adapter_ids": IDS, "group_size": 4, **change}
    check(rk.road_apply_batched, arguments, error, message)


def test_bad_tables():
    r1, r2 = torch.ones(8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"r1 must be \[8\] or \[4\] for D = 8, got \[16\]"):
        rk.rotate(X, torch.ones(16), r2, group_size=4)
    with pytest.raises(ValueError, match=r"r2 must have the shape of r1, \[8\], got \[4\]"):
        rk.rotate(X, r1, r2[:4], group_size=4)
    with pytest.raises(ValueError, match=r"r1 must be \[A, 8\] or \[A, 4\]"):
        rk.rotate_batched(X, r1, r2, IDS, group_size=4)
    with pytest.raises(TypeError, match="adapter_ids must be int32"):
        rk.rotate_batched(X, r1[None], r2[None], IDS.double(), group_size=4)


@pytest.mark.asserts_on_device
@pytest.mark.parametrize("bad", [3, -2, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
def test_ids_outside_the_bank(backend, bad, id_dtype):
    ids = IDS.to(id_dtype, copy=True)
    ids[1] = bad
    x = X.clone()
    params = [t.clone().requires_grad_() for t in BANK]
    for inplace in (False, True):
        with pytest.raises(IndexError):
            apply(x, *params, "road_1", ids, group_size=4, inplace=inplace, backend=backend)
    if backend != "cuda_shim":  # where a device-side assertion stops a kernel that is already writing
        assert torch.equal(x, X)


@pytest.mark.cpu_only
def test_ids_outside_the_bank_name_the_id():
    with pytest.raises(IndexError, match=r"adapter_ids holds 9 \(flat position 2\), but must hold -1 .* the bank's 3"):
        rk.road_apply_batched(X, *BANK, torch.tensor([0, 1, 9, 0]), group_size=4, backend="cpu")


@pytest.mark.asserts_on_device
def test_ids_beyond_int32_are_not_wrapped(backend):
    with pytest.raises(IndexError):
        apply(X, *BANK, "road_1", torch.tensor([0, 2**32, 0, 0]), group_size=4, backend=backend)


def test_a_leaf_that_requires_grad_is_not_written(backend):
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="leaf tensor that requires grad"):
        rk.road_apply(x, THETA, ALPHA, group_size=4, inplace=True, backend=backend)
    with torch.no_grad():  # which torch's own in-place ops allow too
        rk.road_apply(x, THETA, ALPHA, group_size=4, inplace=True, backend=backend)


def test_an_expanded_tensor_is_not_written(backend):
    with pytest.raises(ValueError, match="may hold several elements in one place"):
        rk.road_apply(torch.ones(1, 8).expand(4, 8), THETA, ALPHA, group_size=4, inplace=True, backend=backend)


def test_overlapping_rows_are_not_written(backend):
    x = torch.ones(11).as_strided((2, 8), (3, 1))
    with pytest.raises(ValueError, match="may hold several elements in one place"):
        rk.road_apply(x, THETA, ALPHA, group_size=4, inplace=True, backend=backend)


PACKED = {
    "theta is no tensor": ((1.0, ALPHA), "road_1", 4, TypeError, "theta must be a torch.Tensor"),
    "three dimensions": (
        (torch.ones(1, 1, 4), torch.ones(1, 1, 4)),
        "road_1",
        4,
        ValueError,
        r"theta must be \[P\] or \[A, P\]",
    ),
    "two shapes": ((torch.ones(4), torch.ones(8)), "road_1", 4, ValueError, "alpha must have the shape of theta"),
    "two devices": (
        (torch.ones(4), torch.ones(4, **META)),
        "road_1",
        4,
        ValueError,
        "alpha must be on the device of theta",
    ),
    "width": ((torch.ones(4), torch.ones(4)), "road_2", 6, ValueError, "group_size must be even, positive and divide"),
    "odd road_4": ((torch.ones(9), torch.ones(9)), "road_4", 2, ValueError, r"theta must be \[2 D\]"),
    "variant": ((torch.ones(4), torch.ones(4)), "road_5", 4, ValueError, "variant must be"),
}


@pytest.mark.parametrize(("params", "variant", "group_size", "error", "message"), PACKED.values(), ids=PACKED.keys())
def test_bad_arguments_of_road_tables(params, variant, group_size, error, message):
    with pytest.raises(error, match=message):
        rk.road_tables(*params, variant=variant, group_size=group_size)


def test_bad_layers():
    weight, bias = torch.ones(8, 5), torch.ones(8)
    with pytest.raises(ValueError, match=r"weight must be \[out, in\], got \[8\]"):
        rk.road_merge(bias, None, THETA, ALPHA, group_size=4)
    with pytest.raises(ValueError, match=rf"bias must be \[8\] on {X.device}, got \[5\] on {X.device}"):
        rk.road_merge(weight, torch.ones(5), THETA, ALPHA, group_size=4)
    with pytest.raises(TypeError, match="weight must be float16"):
        rk.road_unmerge(weight.int(), bias, THETA, ALPHA, group_size=4)
    alpha = ALPHA.clone()
    alpha[3] = 0
    with pytest.raises(ValueError, match=r"cannot invert the block of features \(5, 7\): its determinant is 0"):
        rk.road_unmerge(weight, bias, THETA, alpha, group_size=4)


def test_the_checks_in_cpp_and_in_python_agree(monkeypatch):
    """csrc/binding/check.cpp must reject exactly what ops/checks.py rejects: without it the errors are the same."""
    monkeypatch.setattr(checks, "EXTENSION", None)
    for change, error, message in SINGLE.values():
        test_bad_arguments_of_road_apply(change, error, message)
    for change, error, message in BATCHED.values():
        test_bad_arguments_of_road_apply_batched(change, error, message)
    rk.road_apply_batched(X, *BANK, IDS, group_size=4)


def test_the_torch_ops_check_their_arguments():
    """torch.ops.road_kernels called directly goes through no check in Python, and must not read out of bounds."""
    op = torch.ops.road_kernels.rotate
    bad = {
        "narrow parameters": (X, THETA[:2], ALPHA[:2], None, "road_1", 4),
        "group_size 0": (X, THETA, ALPHA, None, "road_1", 0),
        "form": (X, THETA, ALPHA, None, "road_9", 4),
        "ids too long": (X, *BANK, torch.zeros(9, dtype=torch.int64), "road_1", 4),
        "parameters of one adapter": (X, THETA, ALPHA, IDS, "road_1", 4),
        "scalar x": (torch.tensor(1.0), THETA, ALPHA, None, "road_1", 4),
        "two shapes": (X, THETA, ALPHA[:2], None, "road_1", 4),
    }
    for arguments in bad.values():
        with pytest.raises((ValueError, TypeError)):
            op(*arguments)
    with pytest.raises(ValueError, match="grad must match"):
        torch.ops.road_kernels.rotate_backward(X[:2], X, THETA, ALPHA, None, "road_1", 4, False, [True, True, True])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("adapters", [0, 3])
def test_ids_of_the_fallback_lose_no_bits(adapters, dtype):
    """index_select on a GPU looks at the lower 32 bits of an index only; it gets none that they would falsify."""
    ids = [-1, 0, 2, 3, -2, 2**31 - 1, -(2**31)]
    ids += [2**32, 2**32 + 1, -(2**32), 2**62] if dtype == torch.int64 else []
    index = bank_index(torch.tensor(ids, dtype=dtype), adapters)
    assert index.tolist() == [0 if i == -1 else i if 0 <= i < adapters else max(1, adapters) for i in ids]
