"""Enough rows that a thread walks many with one adapter, and enough ids that sorting them takes several tiles."""

import pytest
import torch
from support.backends import DEVICE
from support.expected import assert_close, expect_backward, expect_forward
from support.problems import FORMS, apply, make_params, make_x

ADAPTERS = 4
# Rows by width. An H200, which holds 1584 blocks of a forward and 396 of a backward, then has several rows in flight in
# a thread; at the widths with 450,000 rows, a block has more than the 256 rows whose addresses it stages at a time.
ON_CPU = {16: 5000, 18: 5000, 64: 5000, 1088: 2300}
ON_GPU = {16: 450_000, 18: 450_000, 64: 450_000, 1088: 20_000}
FORWARD_ROWS = ON_CPU if DEVICE == "cpu" else ON_GPU
BACKWARD_ROWS = 1500 if DEVICE == "cpu" else 110_000
COMPARED = 5000  # rows, a random sample where there are more
UNITS = 2  # roundings of the arithmetic: at most 1.1 were measured on python, 1.0 on the kernels


def runs(rows: int) -> torch.Tensor:
    """Ids in runs of 1, 2, 3, ... rows, some of them runs of pass-through rows."""
    lengths = torch.arange(1, int((2 * rows) ** 0.5) + 2)
    ids = torch.repeat_interleave(torch.arange(len(lengths)) % (ADAPTERS + 1) - 1, lengths)
    return ids[:rows]


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("form", ["road_4", "table_half"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("dim", "group_size"), [(16, 2), (64, 32), (1088, 64), (18, 6)], ids=str)
def test_forward_over_runs(backend, dim, group_size, dtype, form, inplace):
    rows = FORWARD_ROWS[dim]
    x, ids = make_x(rows, dim, dtype=dtype), runs(rows)
    p, q = make_params(form, ADAPTERS, dim)
    y = x.clone()
    z = apply(y, p, q, form, ids, group_size=group_size, inplace=inplace, backend=backend)
    assert (z is y) == inplace
    some = torch.randperm(rows)[:COMPARED]
    assert_close(z[some], expect_forward(x[some], p, q, form, group_size, ids[some]), torch.float32, UNITS)
    assert torch.equal(z[ids == -1], x[ids == -1])


@pytest.mark.parametrize("batched", [False, True], ids=["single", "per request"])
@pytest.mark.parametrize("group_size", [2, 16])
def test_slices_of_requests(backend, group_size, batched):
    """Rows with two strides: the tokens after the first 3 of every request."""
    x, gz = (make_x(6, 500, 48, dtype=torch.bfloat16, seed=seed)[:, 3:] for seed in (0, 5))
    ids = torch.tensor([2, -1, 0, 3, 3, 0]) if batched else None
    p, q = make_params("road_1", ADAPTERS if batched else None, 48)
    leaves = [t.detach().requires_grad_() for t in (x, p, q)]
    z = apply(*leaves, "road_1", ids, group_size=group_size, backend=backend)
    assert_close(z, expect_forward(x, p, q, "road_1", group_size, ids), torch.float32, UNITS)
    grads = torch.autograd.grad(z, leaves, gz)
    for got, want in zip(grads, expect_backward(gz, x, p, q, "road_1", group_size, ids), strict=True):
        assert_close(got, want, torch.float32, UNITS)


ORDERS = {
    "at random": lambda n, a: torch.randint(-1, a, (n,)),
    "all none": lambda n, a: torch.full((n,), -1),
    "all the first": lambda n, a: torch.zeros(n),
    "all the last": lambda n, a: torch.full((n,), a - 1),
    "descending": lambda n, a: torch.arange(n - 1, -1, -1) * a // n,
    "some unused": lambda n, a: torch.randint(0, a // 2 + 1, (n,)) * 2 - 1,
}


# Around one block of ids, one tile, and the most that the kernels sort themselves.
@pytest.mark.parametrize("count", [1, 127, 128, 129, 512, 513, 4096, 4097])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_every_row_counts_for_its_own_adapter(backend, order, count):
    """Small integers, whose float32 sums are exact in any order."""
    adapters = 300 if count in (129, 513) else 7
    id_dtype = torch.int32 if count % 2 else torch.int64
    x, gz = (torch.randint(-4, 5, (count, 2)).float() for _ in range(2))
    ids = order(count, adapters).to(id_dtype)
    r1, r2 = torch.ones(adapters, 2, requires_grad=True), torch.zeros(adapters, 2, requires_grad=True)
    z = apply(x, r1, r2, "table", ids, group_size=2, backend=backend)
    got = torch.autograd.grad(z, (r1, r2), gz)
    for g, per_row in zip(got, (gz * x, gz * torch.stack((-x[:, 1], x[:, 0]), dim=1)), strict=True):
        want = torch.zeros(adapters + 1, 2).index_add_(0, ids + 1, per_row)[1:]
        assert torch.equal(g, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "group_size"), [(64, 2), (64, 32), (520, 8)], ids=str)
def test_backward_over_runs(backend, dim, group_size, form):
    rows = BACKWARD_ROWS if dim == 64 else 1500
    x, gz = (make_x(rows, dim, dtype=torch.bfloat16, seed=seed) for seed in (0, 5))
    p, q = make_params(form, ADAPTERS, dim)
    ids = runs(rows)[torch.randperm(rows)]
    leaves = [t.detach().requires_grad_() for t in (x, p, q)]
    z = apply(*leaves, form, ids, group_size=group_size, backend=backend)
    grads = torch.autograd.grad(z, leaves, gz)
    for got, want in zip(grads, expect_backward(gz, x, p, q, form, group_size, ids), strict=True):
        assert_close(got, want, torch.float32, UNITS)
