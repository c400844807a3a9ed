"""RoAd + LoRA, one adapter or one of each per row: numbers, gradients, in place, merging, refusals."""

import numpy as np
import pytest
import torch
from support.expected import expect_forward, f64
from support.problems import DTYPES, make_params, make_x

import road_kernels as rk
from road_kernels import python_fallback

VARIANTS = ("road_1", "road_2", "road_4")
IN, DIM, RANK, GROUP = 24, 64, 4, 16
SCALING = 0.75


def make(variant="road_1", leading=(6, 5), dtype=torch.float32, parameters=torch.float32, bank=None):
    """h, x, theta, alpha, lora_a, lora_b."""
    h, x = make_x(*leading, DIM, dtype=dtype), make_x(*leading, IN, dtype=dtype, seed=1)
    theta, alpha = make_params(variant, bank and bank[0], DIM, dtype=parameters)
    size = (bank[1],) if bank else ()
    a, b = make_x(*size, RANK, IN, dtype=parameters, seed=2) / 5, make_x(*size, DIM, RANK, dtype=parameters, seed=3) / 2
    return h, x, theta, alpha, a, b


def products(x, a, b, ids=None, scaling=SCALING):
    """s (x A^T) B^T in float64, and its magnitude."""
    x, a, b = f64(x), f64(a), f64(b)
    if ids is None:
        return scaling * x @ a.T @ b.T, abs(scaling) * abs(x) @ abs(a).T @ abs(b).T
    scales = np.broadcast_to(f64(scaling) if isinstance(scaling, torch.Tensor) else scaling, len(a))
    value, magnitude = (np.zeros((*x.shape[:-1], b.shape[1])) for _ in range(2))
    for index in np.ndindex(*x.shape[:-1]):
        k = int(ids[index[: ids.dim()]])
        if k >= 0:
            value[index] = scales[k] * x[index] @ a[k].T @ b[k].T
            magnitude[index] = abs(scales[k]) * abs(x[index]) @ abs(a[k]).T @ abs(b[k]).T
    return value, magnitude


def assert_right(z, h, rotated, lora):
    """Three roundings in z's dtype: of the rotation, of x A^T (and of the cast factors), and of the sum."""
    assert z.dtype == h.dtype and z.shape == h.shape
    value, magnitude = rotated.value + lora[0], rotated.magnitude + lora[1]
    eps = torch.finfo(h.dtype).eps
    error = np.abs(f64(z) - value)
    assert (error <= 4 * max(eps, 1e-15) * magnitude + 1e-6 * (h.dtype == torch.float16)).all(), error.max()


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(backend, dtype, parameters, variant, inplace):
    h, x, theta, alpha, a, b = make(variant, dtype=dtype, parameters=parameters)
    want = expect_forward(h, theta, alpha, variant, GROUP), products(x, a, b)
    given = h.clone()
    options = {"scaling": SCALING, "variant": variant, "group_size": GROUP, "backend": backend}
    z = rk.road_lora_apply(given, x, theta, alpha, a, b, inplace=inplace, **options)
    assert (z is given) == inplace
    assert_right(z, h, *want)
    spec = python_fallback.road_lora_apply(h, x, theta, alpha, a, b, SCALING, variant, GROUP)
    assert_right(spec, h, *want)


IDS = {
    "one id": (torch.tensor([2, 2, 2, 2, 2, 2]), None),
    "per request": (torch.tensor([2, -1, 0, 1, 2, -1]), None),
    "two ids": (torch.tensor([2, -1, 0, 1, 2, -1]), torch.tensor([-1, 1, 1, 0, 2, -1], dtype=torch.int32)),
    "per token": (torch.arange(30).view(6, 5) % 4 - 1, torch.arange(29, -1, -1).view(6, 5) % 4 - 1),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_batched(backend, dtype, kind, inplace):
    h, x, *parameters = make("road_2", dtype=dtype, bank=(3, 3))
    ids, lora_ids = (t if t is None else t.to(h.device) for t in IDS[kind])
    scaling = torch.tensor([0.5, 1.5, -1.0], device=h.device)
    theta, alpha, a, b = parameters
    for scale in (SCALING, scaling):
        given = h.clone()
        options = {"scaling": scale, "variant": "road_2", "group_size": GROUP}
        args = x, theta, alpha, a, b, ids, lora_ids
        z = rk.road_lora_apply_batched(given, *args, inplace=inplace, backend=backend, **options)
        assert (z is given) == inplace
        of_lora = ids if lora_ids is None else lora_ids
        want = expect_forward(h, theta, alpha, "road_2", GROUP, ids), products(x, a, b, of_lora, scale)
        assert_right(z, h, *want)
        assert_right(python_fallback.road_lora_apply_batched(h, *args, **options), h, *want)
        none = (ids == -1) & (of_lora == -1)
        assert torch.equal(z[none], h[none])


@pytest.mark.parametrize("way", ["groups", "gathering"])
def test_rows_without_lora_do_not_see_the_others(monkeypatch, way):
    """Nor those of a LoRA the NaNs of another's."""
    from road_kernels.functional import lora_products

    if way == "gathering":
        monkeypatch.setattr(lora_products, "_by_groups", lora_products._by_gathering)
        monkeypatch.setattr(lora_products, "_GATHERED", 1)  # in several steps
    h, x, theta, alpha, a, b = make(bank=(3, 3))
    ids = torch.tensor([0, -1, 1, 2, -1, 2])
    a[0], b[0], x[1] = float("nan"), float("nan"), float("inf")
    z = rk.road_lora_apply_batched(h, x, theta, alpha, a, b, ids, group_size=GROUP)
    rotated = rk.road_apply_batched(h, theta, alpha, ids, group_size=GROUP)
    assert z[0].isnan().all() and z[1:].isfinite().all()
    assert torch.equal(z[[1, 4]], h[[1, 4]])
    product = x[5] @ a[2].t() @ b[2].t()
    torch.testing.assert_close(z[5], rotated[5] + product)


@pytest.mark.wiring
@pytest.mark.cpu_only
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_no_further_pass(inplace):
    """One rotation, two products, the second into memory that is there."""
    h, x, *rest = make()
    rows = h.shape[0] * h.shape[1]
    with torch.no_grad(), torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
        rk.road_lora_apply(h, x, *rest, group_size=GROUP, inplace=inplace)
    ops = [event.name for event in profile.events()]
    assert ops.count("aten::addmm_") == ops.count("aten::mm") == 1
    assert not {"aten::add", "aten::add_", "aten::copy_", "aten::mul"} & set(ops)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated == 4 * (rows * RANK + (0 if inplace else h.numel()))


def leaves_of(tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.numerical
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(backend, variant, inplace):
    h, x, theta, alpha = (
        make_x(2, 4, dtype=torch.float64),
        make_x(2, 3, dtype=torch.float64, seed=1),
        *make_params(variant, None, 4, dtype=torch.float64),
    )
    a, b = make_x(2, 3, dtype=torch.float64, seed=2), make_x(4, 2, dtype=torch.float64, seed=3)

    def f(h, *rest):
        options = {"scaling": 0.5, "variant": variant, "group_size": 4, "inplace": inplace, "backend": backend}
        return rk.road_lora_apply(h * 1, *rest, **options)

    leaves = leaves_of((h, x, theta, alpha, a, b))
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.numerical
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_gradcheck_batched(inplace):
    h, x = make_x(3, 4, dtype=torch.float64), make_x(3, 3, dtype=torch.float64, seed=1)
    theta, alpha = make_params("road_1", 2, 4, dtype=torch.float64)
    a, b = make_x(2, 2, 3, dtype=torch.float64, seed=2), make_x(2, 4, 2, dtype=torch.float64, seed=3)
    ids = torch.tensor([1, -1, 0]), torch.tensor([-1, 1, 1])
    scaling = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def f(h, x, theta, alpha, a, b, scaling):
        options = {"scaling": scaling, "group_size": 4, "inplace": inplace}
        return rk.road_lora_apply_batched(h * 1, x, theta, alpha, a, b, *ids, **options)

    leaves = leaves_of((h, x, theta, alpha, a, b, scaling))
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_gradients_of_mixed_dtypes(backend, batched, inplace):
    tensors = make("road_4", dtype=torch.bfloat16, bank=(3, 3) if batched else None)
    ids = (torch.tensor([2, -1, 0, 1, 2, -1]),) if batched else ()
    apply = rk.road_lora_apply_batched if batched else rk.road_lora_apply
    options = {"scaling": SCALING, "variant": "road_4", "group_size": GROUP, "inplace": inplace, "backend": backend}
    gz = make_x(6, 5, DIM, dtype=torch.bfloat16, seed=9)
    leaves, exact = leaves_of(tensors), leaves_of([t.double() for t in tensors])
    apply(leaves[0] * 1, *leaves[1:], *ids, **options).backward(gz)
    apply(exact[0] * 1, *exact[1:], *ids, **options).backward(gz.double())
    for got, want in zip(leaves, exact, strict=True):
        assert got.grad.dtype == got.dtype
        error = (got.grad.double() - want.grad).norm() / want.grad.norm()
        assert error < 8e-3, error  # two units of bfloat16


@pytest.mark.parametrize("wanted", range(6))
def test_nothing_is_computed_for_what_asks_for_no_gradient(wanted):
    tensors = make()
    for inplace in (False, True):
        leaves = [t.clone().requires_grad_(k == wanted) for k, t in enumerate(tensors)]
        rk.road_lora_apply(leaves[0] * 1, *leaves[1:], group_size=GROUP, inplace=inplace).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [k == wanted for k in range(6)]


def test_strides(backend):
    """A slice of a packed output in place, x expanded, factors transposed."""
    _, x, theta, alpha, a, b = make()
    packed = make_x(6, 5, 3 * DIM, seed=7)
    before = packed.clone()
    x = x[:1].expand(6, 5, IN)
    a, b = a.t().contiguous().t(), b.t().contiguous().t()
    middle = packed[..., DIM : 2 * DIM]
    want = rk.road_lora_apply(middle.clone(), x.contiguous(), theta, alpha, a, b, group_size=GROUP)
    for slices, result in ((middle, want), (packed.transpose(0, 1)[..., DIM : 2 * DIM], want.transpose(0, 1))):
        packed.copy_(before)
        seen = x if slices is middle else x.transpose(0, 1)
        rk.road_lora_apply(slices, seen, theta, alpha, a, b, group_size=GROUP, inplace=True, backend=backend)
        torch.testing.assert_close(slices, result)
        assert torch.equal(packed[..., :DIM], before[..., :DIM])
        assert torch.equal(packed[..., 2 * DIM :], before[..., 2 * DIM :])


@pytest.mark.parametrize("rows", [(0,), (0, 3), (1,)], ids=str)
def test_few_rows(rows):
    h, x, theta, alpha, a, b = make(leading=rows)
    assert rk.road_lora_apply(h, x, theta, alpha, a, b, group_size=GROUP).shape == h.shape
    bank = [t[None] for t in (theta, alpha, a, b)]
    ids = torch.zeros(rows[:1], dtype=torch.long)
    batched = rk.road_lora_apply_batched(h, x, *bank, ids, group_size=GROUP)
    torch.testing.assert_close(batched, rk.road_lora_apply(h, x, theta, alpha, a, b, group_size=GROUP))


@pytest.mark.wiring
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_transforms_and_compile(batched):
    h, x, *parameters = make(bank=(3, 3) if batched else None)
    ids = (torch.tensor([2, -1, 0, 1, 2, -1]),) if batched else ()
    apply = rk.road_lora_apply_batched if batched else rk.road_lora_apply

    def f(h, x, *parameters, inplace=False):
        return apply(h * 1, x, *parameters, *ids, scaling=SCALING, group_size=GROUP, inplace=inplace)

    want = f(h, x, *parameters)
    leaves = leaves_of((h, x, *parameters))
    grads = torch.autograd.grad(f(*leaves).square().sum(), leaves)
    got = torch.func.grad(lambda *t: f(*t).square().sum(), argnums=tuple(range(6)))(h, x, *parameters)
    for g, w in zip(got, grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
    stacked = torch.vmap(f, (0, 0, *[None] * 4))(torch.stack((h, h)), torch.stack((x, x)), *parameters)
    torch.testing.assert_close(stacked[1], want)
    for inplace in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(lambda *t, i=inplace: f(*t, inplace=i), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(h, x, *parameters), want)
        compiled_grads = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
        for g, w in zip(compiled_grads, grads, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_autocast():
    h, x, *parameters = make()
    want = rk.road_lora_apply(h, x, *parameters, group_size=GROUP)
    with torch.autocast(h.device.type, dtype=torch.bfloat16):
        assert torch.equal(rk.road_lora_apply(h, x, *parameters, group_size=GROUP), want)
        z = rk.road_lora_apply(h.bfloat16(), x, *parameters, group_size=GROUP)
    assert z.dtype == torch.bfloat16


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_merge_and_unmerge(backend, dtype, inplace):
    _, x, theta, alpha, a, b = make("road_2")
    weight, bias = make_x(DIM, IN, dtype=dtype, seed=5), make_x(DIM, dtype=dtype, seed=6)
    options = {"scaling": SCALING, "variant": "road_2", "group_size": GROUP, "backend": backend}
    given = weight.clone(), bias.clone()
    merged = rk.road_lora_merge(*given, theta, alpha, a, b, inplace=inplace, **options)
    assert (merged[0] is given[0]) == (merged[1] is given[1]) == inplace
    rotated = expect_forward(weight.t(), theta, alpha, "road_2", GROUP)
    exact = rotated.value.T + SCALING * f64(b) @ f64(a)
    size = rotated.magnitude.T + SCALING * abs(f64(b)) @ abs(f64(a))
    half_ulp = 0.5 * torch.finfo(dtype).eps * abs(exact) * 1.001
    assert (abs(f64(merged[0]) - exact) <= half_ulp + 4 * torch.finfo(torch.float32).eps * size).all()
    if dtype == torch.float32:
        layer = torch.nn.functional.linear
        z = rk.road_lora_apply(layer(x, weight, bias), x, theta, alpha, a, b, **options)
        torch.testing.assert_close(layer(x, *merged), z, rtol=1e-5, atol=1e-5)
        back = rk.road_lora_unmerge(*merged, theta, alpha, a, b, inplace=inplace, **options)
        torch.testing.assert_close(back, (weight, bias), rtol=1e-5, atol=1e-5)
    assert rk.road_lora_merge(weight, None, theta, alpha, a, b, **options)[1] is None


NOT_FINITE = float("nan")
REFUSED = [
    ("h", lambda t: t.long(), TypeError, "h must be float16"),
    ("x", lambda t: t[..., :3, :], ValueError, r"x must be \[6, 5, in\]"),
    ("x", lambda t: t[..., :7], ValueError, r"lora_a must be \[r, 7\], got \[4, 24\]"),
    ("lora_a", lambda t: t[None], ValueError, "for a bank use road_lora_apply_batched"),
    ("lora_b", lambda t: t[:, :3], ValueError, "lora_b must have the rank of lora_a"),
    ("lora_b", lambda t: t[:60], ValueError, r"lora_b must be \[64, r\], got \[60, 4\]"),
    ("lora_a", lambda t: t.to("meta"), ValueError, "lora_a must be on the device of h"),
    ("theta", lambda t: t[:5], ValueError, "theta must be"),
    ("scaling", lambda t: "1", TypeError, "scaling must be a number, got str"),
    ("scaling", lambda t: NOT_FINITE, ValueError, "scaling must be finite"),
    ("scaling", lambda t: torch.ones(3), TypeError, "scaling must be a number, got Tensor"),
    ("group_size", lambda t: 3, ValueError, "group_size must be even"),
    ("variant", lambda t: "table", ValueError, "variant must be"),
]


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize(
    ("name", "spoil", "error", "message"), REFUSED, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(REFUSED)]
)
def test_bad_input_is_refused_before_anything_is_written(name, spoil, error, message, inplace):
    names = ("h", "x", "theta", "alpha", "lora_a", "lora_b")
    call = dict(zip(names, make(), strict=True)) | {"scaling": 1.0, "group_size": GROUP, "variant": "road_1"}
    call[name] = spoil(call[name])
    before = call["h"].clone()
    with pytest.raises(error, match=message):
        rk.road_lora_apply(**call, inplace=inplace)
    assert torch.equal(call["h"], before)


def test_bad_input_of_a_batch():
    h, x, *bank = make(bank=(3, 2))
    ids, lora_ids = torch.tensor([0, 1, 2, 0, -1, 1]), torch.tensor([0, 1, 0, 0, -1, 1])
    before = h.clone()
    for changed, error, message in (
        ({"adapter_ids": ids + 1}, IndexError, r"adapter_ids holds 3 \(flat position 2\)"),
        ({"lora_ids": lora_ids + 1}, IndexError, r"lora_ids holds 2 \(flat position 1\), .* the bank's 2 adapters"),
        ({"lora_ids": lora_ids[:3]}, ValueError, r"the shape of lora_ids must be a prefix of \[6, 5\] \(h without"),
        ({"lora_ids": lora_ids.float()}, TypeError, "lora_ids must be int32 or int64"),
        ({"lora_ids": None}, IndexError, r"adapter_ids holds 2 \(flat position 2\), .* the bank's 2 adapters"),
        ({"lora_a": bank[2][0]}, ValueError, "for one adapter use road_lora_apply"),
        ({"lora_b": bank[3][:1]}, ValueError, "the rank and the number of lora_a"),
        ({"scaling": torch.ones(3)}, ValueError, r"scaling must be a number or \[2\]"),
    ):
        names = "theta", "alpha", "lora_a", "lora_b"
        call = {"adapter_ids": ids, "lora_ids": lora_ids, **dict(zip(names, bank, strict=True)), **changed}
        with pytest.raises(error, match=message):
            rk.road_lora_apply_batched(h, x, **call, group_size=GROUP, inplace=True)
        assert torch.equal(h, before)


def test_in_place_refusals():
    h, x, *rest = make()
    with pytest.raises(RuntimeError, match="h is a leaf tensor"):
        rk.road_lora_apply(h.requires_grad_(), x, *rest, group_size=GROUP, inplace=True)
    with pytest.raises(ValueError, match="h shares memory"):
        square = make_x(64, 64)
        factors = square[:RANK, :IN], square[:, :RANK]
        rk.road_lora_apply(square, make_x(64, IN), *rest[:2], *factors, group_size=GROUP, inplace=True)
    trained = [t.clone().requires_grad_() for t in rest]
    trained[1].data[3] = 0
    with pytest.raises(ValueError, match="singular block"):
        rk.road_lora_apply(h.detach() * 1, x, *trained, group_size=GROUP, inplace=True)
