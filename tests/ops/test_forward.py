"""The forward pass on every backend against the float64 oracle."""

import pytest
import torch
from support.expected import arithmetic_of, assert_close, expect_forward
from support.problems import DTYPES, FORMS, apply, make_params, make_x

# Widths: the smallest, one that no vector width divides, one with a vector and a tail, PEFT's groups.
WIDTHS = {
    "smallest": (2, 2),
    "odd groups": (18, 6),
    "tail": (70, 2),
    "one group": (74, 74),
    "groups of 64": (192, 64),
    "groups of 40": (80, 40),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "group_size"), WIDTHS.values(), ids=WIDTHS.keys())
def test_single(backend, form, dtype, dim, group_size):
    x = make_x(3, 2, dim, dtype=dtype)
    p, q = make_params(form, None, dim)
    z = apply(x, p, q, form, group_size=group_size, backend=backend)
    assert z.dtype == dtype
    assert z.is_contiguous()
    assert_close(z, expect_forward(x, p, q, form, group_size), arithmetic_of(dtype))


IDS = {
    "every kind": [2, -1, 0, 4, 2, -1, 4],
    "all none": [-1] * 7,
    "all the first": [0] * 7,
    "all the last": [4] * 7,
    "sorted": [-1, 0, 1, 1, 2, 3, 4],
    "reversed": [4, 3, 2, 1, 1, 0, -1],
}


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_batched(backend, form, ids, id_dtype):
    x = make_x(7, 3, 70)
    p, q = make_params(form, 5, 70)
    ids = torch.tensor(ids, dtype=id_dtype)
    z = apply(x, p, q, form, ids, group_size=10, backend=backend)
    assert_close(z, expect_forward(x, p, q, form, 10, ids), torch.float32)
    assert torch.equal(z[ids == -1], x[ids == -1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "prefix", [(), (4,), (4, 3), (4, 3, 2)], ids=["for all", "per request", "per chunk", "per token"]
)
def test_ids_may_be_any_prefix(backend, dtype, prefix):
    x = make_x(4, 3, 2, 12, dtype=dtype)
    p, q = make_params("road_2", 3, 12)
    ids = torch.randint(-1, 3, prefix)
    z = apply(x, p, q, "road_2", ids, group_size=4, backend=backend)
    assert_close(z, expect_forward(x, p, q, "road_2", 4, ids), arithmetic_of(dtype))


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_keep_their_own_dtype(backend, dtype, param_dtype):
    x = make_x(5, 64, dtype=dtype)
    theta, alpha = make_params("road_1", None, 64, dtype=param_dtype)
    alpha = alpha.float()  # the two may even differ
    z = apply(x, theta, alpha, "road_1", group_size=32, backend=backend)
    assert_close(z, expect_forward(x, theta, alpha, "road_1", 32), arithmetic_of(dtype), units=6)


EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 65504.0, -65504.0, 6e-8, 3.4e38, -3.4e38]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("group_size", [2, 6, 64])
def test_identity_start_returns_x_bit_for_bit(backend, dtype, form, group_size):
    x = torch.tensor(EDGES, dtype=torch.float64).to(dtype)
    x = x[x.isfinite()]
    dim = 192
    x = torch.cartesian_prod(x, x).flatten()  # every edge value paired with every other
    x = torch.cat([x, x.new_zeros(-len(x) % dim)]).view(-1, dim)
    n = make_params(form, None, dim)[0].shape[0]
    z = apply(x, torch.zeros(n), torch.ones(n), form, group_size=group_size, backend=backend)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    assert torch.equal(z.view(bits), x.view(bits))


def test_pass_through_rows_are_copied_bit_for_bit(backend):
    x = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-45]])
    p, q = make_params("road_1", 1, 4)
    z = apply(x, p, q, "road_1", torch.tensor([-1]), group_size=2, backend=backend)
    assert torch.equal(z.view(torch.int32), x.view(torch.int32))


def test_an_empty_bank_serves_pass_through_rows(backend):
    x = make_x(3, 8)
    z = apply(x, torch.empty(0, 4), torch.empty(0, 4), "road_1", torch.full((3,), -1), group_size=4, backend=backend)
    assert torch.equal(z, x)


@pytest.mark.asserts_on_device
def test_an_empty_bank_refuses_other_rows(backend):
    none, ids = torch.empty(0, 4), torch.tensor([-1, 0, -1])
    with pytest.raises(IndexError):
        apply(make_x(3, 8), none, none, "road_1", ids, group_size=4, backend=backend)


@pytest.mark.parametrize("theta", [1e4, 1e6, 1e7, -3e9])
def test_large_angles(backend, theta):
    x = make_x(2, 64)
    p = torch.full((32,), theta) + torch.arange(32)
    q = torch.ones(32)
    assert_close(apply(x, p, q, "road_1", backend=backend), expect_forward(x, p, q, "road_1", 64), torch.float32)


def test_non_finite_values_stay_in_their_pair(backend):
    x = torch.ones(1, 8)
    x[0, 1] = float("nan")
    p, q = make_params("road_1", None, 8)
    z = apply(x, p, q, "road_1", group_size=4, backend=backend)  # pairs (0, 2), (1, 3), (4, 6), (5, 7)
    assert z.isnan().tolist() == [[False, True, False, True, False, False, False, False]]


def test_many_adapters_and_rows(backend):
    x = make_x(700, 128)
    p, q = make_params("road_4", 90, 128)
    ids = torch.randint(-1, 90, (700,))
    ids[:2] = torch.tensor([89, 0])
    z = apply(x, p, q, "road_4", ids, backend=backend)
    assert_close(z, expect_forward(x, p, q, "road_4", 64, ids), torch.float32)
