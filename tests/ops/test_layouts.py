"""Strides, offsets, empty and expanded tensors: same numbers as contiguous ones, and no byte written outside."""

import pytest
import torch
from support.expected import same
from support.problems import DTYPES, FORMS, apply, make_params, make_x

LAYOUTS = {
    "column slice": lambda: make_x(4, 5, 36)[..., 12:24],
    "odd column offset": lambda: make_x(4, 5, 36)[..., 3:15],
    "rows in reverse strides": lambda: make_x(5, 4, 12).transpose(0, 1),
    "every second row": lambda: make_x(8, 5, 12)[::2],
    "without the first token": lambda: make_x(4, 6, 12)[:, 1:],
    "three strides": lambda: make_x(3, 4, 5, 24).permute(2, 0, 1, 3)[:4, ..., :12],
    "transposed": lambda: make_x(12, 4, 5).permute(1, 2, 0),
    "expanded rows": lambda: make_x(1, 5, 12).expand(4, 5, 12),
    "expanded everywhere": lambda: make_x(1).expand(4, 5, 12),
    "one row": lambda: make_x(12),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides(backend, layout):
    x = layout()
    p, q = (t.requires_grad_() for t in make_params("road_2", 3, 12))
    ids = torch.tensor([2, -1, 0, 2])[: x.shape[0] if x.dim() > 1 else 0]
    ids = ids if x.dim() > 1 else torch.tensor(1)

    def run(x):
        x = x.detach().requires_grad_()
        p.grad = q.grad = None
        z = apply(x, p, q, "road_2", ids, group_size=4, backend=backend)
        z.backward(make_x(*x.shape, seed=3))
        return z.detach(), x.grad, p.grad, q.grad

    for got, want in zip(run(x), run(x.contiguous()), strict=True):
        assert same(backend, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
@pytest.mark.parametrize(("dim", "group_size"), [(64, 64), (64, 2), (70, 2), (18, 6)], ids=str)
def test_in_place_writes_nothing_outside_its_rows(backend, dtype, offset, dim, group_size):
    """In place on rows of a larger buffer, at every alignment: the elements around them keep their values."""
    gap = 5
    buffer = torch.full((3 * (dim + gap) + offset,), 7.0, dtype=dtype)
    x = buffer[offset:].view(3, dim + gap)[:, :dim]
    x.copy_(make_x(3, dim, dtype=dtype))
    p, q = make_params("road_1", None, dim)
    want = apply(x.contiguous(), p, q, "road_1", group_size=group_size, backend=backend)
    apply(x, p, q, "road_1", group_size=group_size, inplace=True, backend=backend)
    assert torch.equal(x, want)
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside[offset:].view(3, dim + gap)[:, :dim] = False
    assert (buffer[outside] == 7).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "make",
    [
        lambda z: z.sum(),
        lambda z: z.mean(0).sum(),
        lambda z: z[..., 0].sum(),
        lambda z: z.transpose(0, 1).reshape(-1).dot(torch.arange(z.numel()) * 1.0),
    ],
    ids=["stride 0", "expanded rows", "one column", "permuted"],
)
def test_gradients_of_any_layout(backend, form, make):
    p, q = (t.requires_grad_() for t in make_params(form, None, 12))

    def run(through):
        x = make_x(4, 5, 12).requires_grad_()
        p.grad = q.grad = None
        make(through(apply(x, p, q, form, group_size=6, backend=backend))).backward()
        return x.grad, p.grad, q.grad

    for got, want in zip(run(lambda z: z), run(Contiguous.apply), strict=True):
        assert same(backend, got, want)


class Contiguous(torch.autograd.Function):
    """Makes the gradient contiguous."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous()


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (3, 0, 8)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inplace", [False, True])
def test_no_rows(backend, shape, form, inplace):
    x = torch.empty(shape).requires_grad_(not inplace)
    p, q = (t.requires_grad_() for t in make_params(form, 2, 8))
    for ids in (torch.zeros(shape[:1], dtype=torch.int64), torch.zeros(shape[:-1], dtype=torch.int64)):
        z = apply(
            x if not inplace else torch.empty(shape), p, q, form, ids, group_size=4, inplace=inplace, backend=backend
        )
        assert z.shape == shape
        p.grad = q.grad = None
        z.sum().backward()
        assert not p.grad.any()
        assert not q.grad.any()


@pytest.mark.parametrize("form", FORMS)
def test_strided_parameters_and_ids(backend, form):
    x = make_x(4, 12)
    p, q = make_params(form, 6, 12)
    ids = torch.tensor([1, 9, 0, 9, 2, 9, -1, 9])[::2]
    want = apply(x, p[::2].contiguous(), q[::2].contiguous(), form, ids.contiguous(), group_size=4, backend=backend)
    transposed = p.t().contiguous().t()
    for a, b in ((p[::2], q[::2]), (transposed[::2], q[::2])):
        assert torch.equal(apply(x, a, b, form, ids, group_size=4, backend=backend), want)
    expanded = p[:1].expand(6, -1)
    assert torch.equal(
        apply(x, expanded, q, form, ids, group_size=4, backend=backend),
        apply(x, expanded.contiguous(), q, form, ids, group_size=4, backend=backend),
    )


def test_more_than_two_to_the_31_elements(backend):
    """Offsets beyond int32. All rows but the first and last pass through, in place, without being read or written."""
    if backend == "python":
        pytest.skip("plain PyTorch indexes with 64 bits by itself; its temporaries here would take 40 GB")
    rows, dim = 2**31 // 1024 + 3, 1024
    x = torch.empty(rows, dim, dtype=torch.bfloat16)  # 4 GiB of address space, touched at both ends only
    x[0], x[-1] = 1.0, 1.0
    p, q = make_params("road_1", 2, dim)
    ids = torch.full((rows,), -1)
    ids[0], ids[-1] = 0, 1
    apply(x, p, q, "road_1", ids, inplace=True, backend=backend)
    for row, a in ((0, 0), (rows - 1, 1)):
        assert torch.equal(x[row], apply(torch.ones(dim, dtype=x.dtype), p[a], q[a], "road_1", backend=backend))
