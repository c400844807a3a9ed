"""The gradient of s of rotate_add_rms_norm, the op that every backend has for it, against float64 by numpy."""

import numpy as np
import pytest
import torch
from support import oracle
from support.expected import arithmetic_of, assert_close, f64, same
from support.problems import DTYPES, make_x

from road_kernels.backends import registry
from road_kernels.ops import schemas
from road_kernels.ops.fused_autograd import RotateAddRmsNorm

EPS = 1e-5


def call(backend, gy, gs, s, weight, eps=EPS):
    return registry._loaded[backend][0].add_rms_norm_backward(gy, gs, s, weight, eps)


def make(*shape, dtype=torch.float32, weight_dtype=torch.float32):
    gy, gs, s = (make_x(*shape, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    return gy, gs, s, (make_x(shape[-1], seed=4) / 4 + 1).to(weight_dtype)


def expect(gy, gs, s, weight, eps=EPS) -> oracle.Result:
    gn, gs, s = f64(gy) * f64(weight), f64(gs), f64(s)
    scale = 1 / np.sqrt((s**2).mean(-1, keepdims=True) + eps)
    through = lambda terms: terms.mean(-1, keepdims=True) * scale**3  # noqa: E731
    value = gs + gn * scale - s * through(gn * s)
    return oracle.Result(value, np.abs(gs) + np.abs(gn) * scale + np.abs(s) * through(np.abs(gn * s)))


def check(backend, gy, gs, s, weight, eps=EPS):
    got = call(backend, gy, gs, s, weight, eps)
    assert got.dtype == s.dtype and got.is_contiguous()
    assert_close(got, expect(gy, gs, s, weight, eps), arithmetic_of(s.dtype), units=6)
    return got


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 7, 70, 96, 128])
def test_against_float64(backend, dim, dtype, weight_dtype):
    check(backend, *make(3, 5, dim, dtype=dtype, weight_dtype=weight_dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [4096, 8200, 16385, 40000], ids=str)
def test_long_rows(backend, dim, dtype):
    check(backend, *make(2, dim, dtype=dtype))


@pytest.mark.parametrize("packs", [31, 32, 33, 128, 129, 1024, 1025])
def test_about_as_many_packs_as_a_warp_or_a_block_has_threads(backend, packs):
    """Packs of eight numbers; from 129 on, a thread has two."""
    check(backend, *make(3, 8 * packs, dtype=torch.bfloat16))


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_few_rows(backend, rows):
    check(backend, *make(rows, 64, dtype=torch.bfloat16))
    gy, gs, s, weight = make(64)  # one row without a leading dimension
    check(backend, gy, gs, s, weight)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e4])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 3.0])
def test_small_and_large_rows(backend, scale, eps):
    gy, gs, s, weight = make(4, 96)
    check(backend, gy, gs, s * scale, weight, EPS if scale < 1e-3 else eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [96, 70])
def test_any_strides(backend, dim, dtype):
    """Slices of columns that start anywhere, a transposed batch, and the gradients of sums, which repeat one number."""
    dense = gy, gs, s, weight = make(6, 3, dim, dtype=dtype)
    sliced = torch.zeros(6, 5, dim + 3, dtype=dtype)[:, 1:4, 3:]
    turned = torch.zeros(3, 6, dim, dtype=dtype).transpose(0, 1)
    columns = torch.zeros(6, dim, 3, dtype=dtype).transpose(1, 2)
    want = check(backend, *dense)
    for layout in (sliced, turned, columns):
        assert not layout.is_contiguous()
        for k in range(3):
            moved = list(dense)
            moved[k] = layout.copy_(moved[k])
            got = check(backend, *moved)
            assert backend in ("python", "triton") or torch.equal(got, want)
    got = check(backend, gy, gs, s, torch.stack((weight, weight), dim=1)[:, 0])
    assert torch.equal(got, want)
    check(backend, torch.ones((), dtype=dtype).expand_as(s), torch.zeros(dim, dtype=dtype).expand_as(s), s, weight)


def test_a_row_does_not_depend_on_the_others(backend):
    gy, gs, s, weight = make(40, 64, dtype=torch.bfloat16)
    want, at = call(backend, gy, gs, s, weight), slice(11, 14)
    assert torch.equal(call(backend, gy, gs, s, weight), want)
    assert same(backend, call(backend, gy[at], gs[at], s[at], weight), want[at])


def test_a_row_that_is_not_finite_stays_alone(backend):
    gy, gs, s, weight = make(5, 64)
    want = call(backend, gy, gs, s, weight)
    s[2, 3] = float("inf")
    got, others = call(backend, gy, gs, s, weight), [0, 1, 3, 4]
    assert got[2].isnan().any() and same(backend, got[others], want[others])


@pytest.mark.numerical
def test_it_is_the_gradient_of_the_norm_and_can_be_differentiated(backend):
    """s and y = weight * s / rms(s) by torch's own autograd; then gradcheck of the op itself, in each argument."""
    gy, gs, s, weight = make(3, 6, dtype=torch.float64, weight_dtype=torch.float64)
    s.requires_grad_()
    y = torch.nn.functional.rms_norm(s, (6,), weight, EPS)
    (want,) = torch.autograd.grad((y, s * 1), s, (gy, gs))
    torch.testing.assert_close(call(backend, gy, gs, s.detach(), weight), want, rtol=1e-12, atol=1e-12)
    leaves = [t.detach().requires_grad_() for t in (gy, gs, s, weight)]
    op = lambda *t: schemas.add_rms_norm_backward(*t, EPS)  # noqa: E731
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.wiring
def test_opcheck():
    leaves = [t.requires_grad_() for t in make(4, 16)]
    torch.library.opcheck(schemas.add_rms_norm_backward, (*leaves, EPS))
    gy, gs, s, weight = make(4, 16, dtype=torch.bfloat16)
    torch.library.opcheck(schemas.add_rms_norm_backward, (gy, gs[:1].expand(4, 16), s, weight, EPS))


WRONG = {
    "gy must match s": (ValueError, {"gy": make_x(4, 8)}),
    "gs must match s": (ValueError, {"gs": make_x(4, 16).double()}),
    "s must be float16": (TypeError, {"s": torch.zeros(4, 16, dtype=torch.int32)}),
    "s must be \\[..., D\\]": (ValueError, {name: torch.ones(()) for name in ("gy", "gs", "s", "weight")}),
    "weight must be \\[16\\]": (ValueError, {"weight": torch.ones(17)}),
    "eps must not be negative": (ValueError, {"eps": -1.0}),
}


@pytest.mark.parametrize(("match", "error", "changes"), [(m, *w) for m, w in WRONG.items()], ids=WRONG)
def test_wrong_arguments(backend, match, error, changes):
    if backend == "python":
        pytest.skip("the formula checks nothing: public functions do")
    tensors = dict(zip(("gy", "gs", "s", "weight"), make(4, 16), strict=True))
    with pytest.raises(error, match=match):
        call(backend, **(tensors | changes))


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)], ids=["rest", "weight", "both"])
def test_the_gradient_of_weight_is_computed_only_if_asked_for(backend, monkeypatch, wanted):
    """And nothing but it, if nothing else is."""
    import road_kernels as rk
    from road_kernels.ops import fused_autograd

    called = []
    module, _ = registry._loaded[backend]
    inner, of_weight = module.add_rms_norm_backward, fused_autograd.rms_norm_weight_gradient
    monkeypatch.setattr(module, "add_rms_norm_backward", lambda *a: called.append("rest") or inner(*a))
    monkeypatch.setattr(fused_autograd, "rms_norm_weight_gradient", lambda *a: called.append("weight") or of_weight(*a))
    gy, x, residual, weight = make(4, 16)
    x.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    r1, r2 = torch.ones(16), torch.zeros(16)
    y, _ = rk.rotate_add_rms_norm(x, residual, weight, r1, r2, group_size=8, backend=backend)
    assert isinstance(y.grad_fn, RotateAddRmsNorm._backward_cls)
    y.backward(gy)
    assert called == [name for name, want in zip(("rest", "weight"), wanted, strict=True) if want]
