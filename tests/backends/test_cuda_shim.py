"""The CUDA kernels on the host: errors that are device-side assertions on a device; waiting for inputs."""

import pytest
import torch
from support import cuda_shim
from support.cuda_shim import NotYetWritten
from support.problems import FORMS, make_params, make_x, op_form

pytestmark = [pytest.mark.backend("cuda_shim"), pytest.mark.cpu_only]
if reason := cuda_shim.unavailable():
    pytest.skip(reason, allow_module_level=True)


def rotate_(x, p, q, ids, form):
    form = form.removesuffix("_half")
    cuda_shim.build().rotate_(x, p, q, ids, form, 32, True)


@pytest.mark.parametrize("form", FORMS)
def test_a_singular_block_is_refused_before_anything_is_written(form):
    x = torch.randn(3, 1088)
    before = x.clone()
    p, q = make_params(form, None, 1088)
    for t in (p, q) if form.startswith("table") else (q,):  # makes the last row of the last block zero
        t[-1] = 0
    if form == "road_4":
        q[-33] = 0  # the angle of its r1; that of r2 is the last one
    with pytest.raises(IndexError, match=r"device-side assertion.*a block is singular"):
        rotate_(x, p, q, None, form)
    assert torch.equal(x, before)
    rotate_(x, *make_params(form, None, 1088), None, form)
    assert not torch.equal(x, before)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("adapter", [0, 2])
def test_only_adapters_in_use_count(adapter, id_dtype):
    p, q = make_params("road_1", 3, 64)
    q[adapter, -1] = 0
    for ids, refused in ([1, -1, 1], False), ([-1, -1, -1], False), ([1, -1, adapter], True):
        x, ids = torch.randn(3, 64), torch.tensor(ids, dtype=id_dtype)
        if refused:
            with pytest.raises(IndexError, match="a block is singular"):
                rotate_(x, p, q, ids, "road_1")
        else:
            rotate_(x, p, q, ids, "road_1")


def test_empty_batches_and_empty_banks_are_accepted():
    p, q = make_params("road_1", None, 64)
    rotate_(torch.empty(0, 64), p, q * 0, None, "road_1")
    rotate_(torch.ones(2, 64), *torch.ones(2, 0, 32), torch.tensor([-1, -1]), "road_1")


def arguments(form, batched, dim=1088, rows=70, dtype=torch.bfloat16):
    x = make_x(rows, dim, dtype=dtype)
    ids = (torch.arange(rows) * 7 + 1) % 4 - 1 if batched else None
    return x, *make_params(form, 3 if batched else None, dim), ids, op_form(form), 32


@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlap"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_forward_reads_nothing_before_it_waits(form, batched, overlap, dtype):
    """But parameters and ids where the caller promises that they are there."""
    x, p, q, ids, *rest = arguments(form, batched, dtype=dtype)
    want = cuda_shim.build().rotate(x, p, q, ids, *rest)
    promised = () if overlap else [t for t in (p, q, ids) if t is not None]
    for inplace in (False, True):
        pending = NotYetWritten(x, *promised)
        if inplace:
            got = x
            cuda_shim.build().rotate_(x, p, q, ids, *rest, False, overlap)
        else:
            got = cuda_shim.build().rotate(x, p, q, ids, *rest, overlap)
        assert pending.written and torch.equal(got, want)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("form", FORMS)
def test_backward_reads_nothing_before_it_waits(form, batched):
    x, p, q, ids, *rest = arguments(form, batched)
    gz = make_x(*x.shape, dtype=x.dtype, seed=1)
    for wanted in ([True] * 3, [False, True, True], [True, False, False]):
        want = cuda_shim.build().rotate_backward(gz, x, p, q, ids, *rest, False, wanted)
        pending = NotYetWritten(*[t for t in (gz, x, p, q, ids) if t is not None])
        got = cuda_shim.build().rotate_backward(gz, x, p, q, ids, *rest, False, wanted)
        assert pending.written
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_merge_and_the_check_for_singular_blocks_wait():
    w, (r1, r2) = make_x(64, 40), make_params("table", None, 64)
    want = cuda_shim.build().merge(w, r1, r2, 32)
    pending = NotYetWritten(w, r1, r2)
    assert torch.equal(cuda_shim.build().merge(w, r1, r2, 32), want) and pending.written
    x, (theta, alpha) = make_x(5, 64), make_params("road_1", None, 64)
    pending = NotYetWritten(alpha)
    rotate_(x, theta, alpha, None, "road_1")
    assert pending.written and x.isfinite().all()


def test_overlap_is_a_promise():
    """Tables that are written by work still in flight are then read too early: the shim sees it."""
    x, p, q, ids, *rest = arguments("table", True)
    want = cuda_shim.build().rotate(x, p, q, ids, *rest)
    NotYetWritten(p)
    assert not torch.equal(cuda_shim.build().rotate(x, p, q, ids, *rest, True), want)


@pytest.mark.parametrize(("count", "adapters"), [(4097, 3), (5000, 2000), (140_000, 700)])
def test_many_ids(count, adapters):
    """Several tiles of ids, several rounds of adapters, chunks of several tiles."""
    x, gz = (torch.randint(-4, 5, (count, 2)).float() for _ in range(2))
    ids = torch.randint(-1, adapters, (count,))
    r1, r2 = torch.ones(adapters, 1), torch.zeros(adapters, 1)
    gx, g1, g2 = cuda_shim.build().rotate_backward(gz, x, r1, r2, ids, "table", 2, False, [True] * 3)
    assert torch.equal(gx, gz)
    dot, cross = (gz * x).sum(1), gz[:, 1] * x[:, 0] - gz[:, 0] * x[:, 1]
    for got, per_row in ((g1, dot), (g2, cross)):
        assert torch.equal(got[:, 0], torch.zeros(adapters + 1).index_add_(0, ids + 1, per_row)[1:])
