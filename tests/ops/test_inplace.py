"""inplace=True: the same numbers, written into x; training recovers x from the output."""

import pytest
import torch
from support.expected import arithmetic_of, assert_close, expect_backward
from support.problems import DTYPES, FORMS, apply, make_params, make_x

from road_kernels.ops import aliasing

IDS = torch.tensor([1, -1, 0, 2, 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [None, IDS], ids=["single", "batched"])
def test_equals_out_of_place_bitwise(backend, form, dtype, ids):
    x = make_x(5, 3, 36, dtype=dtype)
    p, q = make_params(form, None if ids is None else 3, 36)
    want = apply(x, p, q, form, ids, group_size=12, backend=backend)
    y = x.clone()
    version = y._version
    assert apply(y, p, q, form, ids, group_size=12, inplace=True, backend=backend) is y
    assert torch.equal(y, want)
    assert y._version > version


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [None, IDS], ids=["single", "batched"])
def test_gradients_from_the_output(backend, form, dtype, ids):
    x, gz = make_x(5, 3, 36, dtype=dtype), make_x(5, 3, 36, dtype=dtype, seed=5)
    p, q = (t.requires_grad_() for t in make_params(form, None if ids is None else 3, 36))
    leaf = x.clone().requires_grad_()
    y = leaf * 1
    apply(y, p, q, form, ids, group_size=12, inplace=True, backend=backend).backward(gz)
    gx, gp, gq = expect_backward(gz, x, p, q, form, 12, ids)
    assert_close(leaf.grad, gx, arithmetic_of(dtype))
    # z was rounded to dtype, by half an ulp, which the inverse amplifies: to 1.6 eps at worst here (road_4, bfloat16).
    lost = 2 * torch.finfo(dtype).eps
    assert_close(p.grad, gp, arithmetic_of(dtype), units=8, lost=lost)
    assert_close(q.grad, gq, arithmetic_of(dtype), units=8, lost=lost)


def test_saves_only_its_output(backend):
    saved = []

    def pack(t):
        saved.append(t.data_ptr())
        return t

    y = make_x(16, 64, dtype=torch.bfloat16)
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z = apply(y, theta, alpha, "road_1", inplace=True, backend=backend)
    assert set(saved) == {z.data_ptr(), theta.data_ptr(), alpha.data_ptr()}
    assert z.data_ptr() == y.data_ptr()


def test_writing_over_the_output_is_noticed(backend):
    y = make_x(4, 64)
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 64))
    z = apply(y, theta, alpha, "road_1", inplace=True, backend=backend)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_tensor_saved_by_another_op_is_noticed(backend):
    x = make_x(4, 64).requires_grad_()
    y = x * 1
    square = y * y  # saves y
    apply(y, *make_params("road_1", None, 64), "road_1", inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@pytest.mark.numerical
def test_a_slice_of_a_packed_projection(backend):
    """An adapter on the v of a tensor that packs q, k and v: gradients reach the whole tensor."""
    qkv = make_x(4, 3, 24, dtype=torch.float64).requires_grad_()
    theta, alpha = (t.requires_grad_() for t in make_params("road_2", None, 8, dtype=torch.float64))

    def f(qkv, theta, alpha):
        packed = qkv * 1
        apply(packed[..., 16:], theta, alpha, "road_2", group_size=4, inplace=True, backend=backend)
        return packed

    assert torch.autograd.gradcheck(f, (qkv, theta, alpha))
    assert torch.autograd.gradgradcheck(f, (qkv, theta, alpha))


def test_two_slices_of_one_tensor_in_training_are_refused_by_autograd(backend):
    """Slices share a version counter, so the second write invalidates what the first one saved, as with sigmoid_."""
    packed = make_x(4, 16)
    theta, alpha = (t.requires_grad_() for t in make_params("road_2", None, 8))
    for part in (packed[:, :8], packed[:, 8:]):
        apply(part, theta, alpha, "road_2", group_size=4, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        packed.sum().backward()


@pytest.mark.parametrize(
    "make",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.view(2, 3, 2, 8).permute(2, 0, 1, 3)[..., 1:]],
    ids=["transposed", "every second column", "three strides"],
)
def test_layouts_that_kernels_do_not_take(backend, make):
    base = make_x(6, 16) if make(torch.empty(12, 8)).dim() != 4 else make_x(12, 8)
    x = make(base) if make(base).shape[-1] % 2 == 0 else make(base)[..., :6]
    p, q = make_params("road_2", None, x.shape[-1])
    want = apply(x.clone(), p, q, "road_2", group_size=2, backend=backend)
    untouched = torch.ones_like(base, dtype=torch.bool)
    mask = make(untouched) if make(base).shape == x.shape else make(untouched)[..., :6]
    mask.fill_(False)
    before = base.clone()
    apply(x, p, q, "road_2", group_size=2, inplace=True, backend=backend)
    assert torch.equal(x, want)
    assert torch.equal(base[untouched], before[untouched])


def bank_with_a_singular_block(form):
    """Three adapters; in the second one the block of features (0, 2) is singular."""
    p, q = make_params(form, 3, 8)
    if form.startswith("table"):
        p[1, 0] = q[1, 0] = 0.0
        if form == "table":
            p[1, 2] = q[1, 2] = 0.0
    else:
        q[1, 0] = 0.0  # a zero alpha
        if form == "road_4":
            q[1, 4] = 0.0
    return p.requires_grad_(), q.requires_grad_()


@pytest.mark.asserts_on_device
@pytest.mark.parametrize("form", FORMS)
def test_singular_blocks_are_refused_before_any_write(backend, form):
    p, q = bank_with_a_singular_block(form)
    x, used = make_x(4, 8), torch.tensor([0, 2, 1, -1])
    y = x.clone()
    with pytest.raises(ValueError, match=r"adapter 1 has a singular block: features \(0, 2\), determinant -?0"):
        apply(y, p, q, form, used, group_size=4, inplace=True, backend=backend)
    assert torch.equal(y, x)


@pytest.mark.parametrize("form", FORMS)
def test_singular_blocks_are_allowed_where_nothing_is_divided(backend, form):
    p, q = bank_with_a_singular_block(form)
    x, used, unused = make_x(4, 8), torch.tensor([0, 2, 1, -1]), torch.tensor([0, 2, 2, -1])
    apply(x.clone(), p, q, form, unused, group_size=4, inplace=True, backend=backend).sum().backward()
    assert p.grad.isfinite().all()
    # Inference divides by nothing, and neither do gradients of road_1's angles.
    with torch.no_grad():
        apply(x.clone(), p, q, form, used, group_size=4, inplace=True, backend=backend)
    if form == "road_1":
        apply(x.clone(), p, q.detach(), form, used, group_size=4, inplace=True, backend=backend).sum().backward()


@pytest.mark.asserts_on_device
def test_cancelling_determinant(backend):
    """road_2 with angles a quarter turn apart: r1_i r1_j + r2_i r2_j cancels to 0 up to rounding."""
    theta = torch.tensor([0.3, 0.3 + torch.pi / 2]).requires_grad_()
    with pytest.raises(ValueError, match="singular block"):
        apply(make_x(2, 2), theta, torch.ones(2), "road_2", group_size=2, inplace=True, backend=backend)


@pytest.mark.parametrize(
    "make",
    [lambda x: (x * 1).chunk(2)[0], lambda x: (x * 1).unbind(0)[1], lambda x: x[:2]],
    ids=["chunk", "unbind", "view of a leaf"],
)
@pytest.mark.parametrize("extension", [True, False], ids=["extension", "no extension"])
@pytest.mark.parametrize("form", ["road_1", "table"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_what_autograd_cannot_record_is_refused_before_any_write(backend, make, extension, form, batched, monkeypatch):
    if not extension:  # without it, the check is written in PyTorch
        monkeypatch.setattr(aliasing, "EXTENSION", None)
    p, q = (t.requires_grad_() for t in make_params(form, 3 if batched else None, 8))
    y = make(make_x(4, 1, 8).requires_grad_())
    before = y.detach().clone()
    ids = IDS[: len(y)] if batched else None
    with pytest.raises(RuntimeError, match=r"x cannot be written in place: use inplace=False \(.*view"):
        apply(y, p, q, form, ids, group_size=4, inplace=True, backend=backend)
    assert torch.equal(y, before)


def test_parameters_inside_x_are_refused(backend):
    x = make_x(4, 8)
    before = x.clone()
    for p, q in ((x[0], x[1]), (torch.ones(8), x[3])):
        with pytest.raises(ValueError, match="x shares memory with its parameters"):
            apply(x, p, q, "table", group_size=4, inplace=True, backend=backend)
    assert torch.equal(x, before)
    packed = make_x(5, 8)  # next to each other in one storage is fine
    want = apply(packed[:3], packed[3], packed[4], "table", group_size=4, backend=backend)
    assert torch.equal(
        apply(packed[:3], packed[3], packed[4], "table", group_size=4, inplace=True, backend=backend), want
    )


def test_tiny_scales_and_unused_singular_adapters(backend):
    """alpha^2 underflows in float32, and unused slots of a bank are singular: neither may make a gradient NaN."""
    x, gz, ids = make_x(3, 8), make_x(3, 8, seed=5), torch.tensor([1, -1, 1])
    theta, alpha = make_params("road_2", 3, 8)
    alpha[0] = alpha[2] = 0
    alpha[1] = 1e-25
    theta, alpha = theta.requires_grad_(), alpha.requires_grad_()
    y = x.clone()
    z = apply(y, theta, alpha, "road_2", ids, group_size=4, inplace=True, backend=backend)
    gp, gq = torch.autograd.grad(z, (theta, alpha), gz, retain_graph=True)
    _, want_p, want_q = expect_backward(gz, x, theta, alpha, "road_2", 4, ids)
    assert_close(gp, want_p, torch.float32, units=40)
    assert_close(gq, want_q, torch.float32, units=40)
    second = torch.autograd.grad(z, (theta, alpha), gz, create_graph=True)
    for first, again in zip((gp, gq), second, strict=True):
        torch.testing.assert_close(again.detach(), first, rtol=1e-5, atol=1e-30)
    for g in torch.autograd.grad(sum(g.sum() for g in second), (theta, alpha)):
        assert not g[[0, 2]].any()


def test_road_1_angles_need_no_inverse(backend):
    theta, alpha = torch.zeros(4).requires_grad_(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    for create_graph in (False, True):
        z = apply(make_x(3, 8), theta, alpha, "road_1", group_size=4, inplace=True, backend=backend)
        (g,) = torch.autograd.grad(z.sum(), theta, create_graph=create_graph)
        assert g.isfinite().all()
        assert g[1] == 0


@pytest.mark.asserts_on_device
def test_parallel_rows(backend):
    """One coefficient is near 0, so nothing cancels, and yet the rows of the block are parallel in float32."""
    theta = torch.tensor([1.5707964, 0.0]).requires_grad_()
    with pytest.raises(ValueError, match="singular block"):
        apply(make_x(2, 2), theta, torch.ones(2), "road_2", group_size=2, inplace=True, backend=backend)
