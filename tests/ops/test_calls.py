"""Calls in one step of C++, and those that Python decides: the same results, and which is which."""

import importlib

import pytest
import torch
from support.backends import DEVICE
from support.problems import make_params, make_x

import road_kernels as rk
from road_kernels.ops.autograd import Rotate

functional = importlib.import_module("road_kernels.functional.rotate")
THETA, ALPHA = make_params("road_1", None, 64)
BANK = make_params("road_1", 3, 64)
IDS = torch.tensor([2, -1, 0, 1], device=DEVICE)


AUTOMATIC = rk.backend_info()["automatic"][DEVICE]
pytestmark = pytest.mark.skipif(
    AUTOMATIC not in ("cpu", "cuda"), reason="the extension has no kernels for tensors of this device"
)


@pytest.fixture
def in_cpp(monkeypatch):
    """For each call of a public function: whether C++ served it."""
    served = []
    for name in ("_apply", "_rotate"):
        step = getattr(functional, name)
        spy = lambda *a, _step=step: served.append((z := _step(*a)) is not NotImplemented) or z  # noqa: E731
        monkeypatch.setattr(functional, name, spy)
    return served


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def test_what_is_called_most_is_one_step(in_cpp):
    x = make_x(4, 64)
    rk.road_apply(x, THETA, ALPHA)
    rk.road_apply(x, THETA, ALPHA, backend=AUTOMATIC)
    rk.road_apply_batched(x, *BANK, IDS)
    rk.road_apply_batched(x, *BANK, IDS.int(), inplace=True)
    rk.rotate(x, THETA, ALPHA, overlap=True)
    rk.rotate_batched(x, *BANK, IDS)
    rk.road_apply(*leaves(x, THETA, ALPHA))
    rk.road_apply(x, torch.nn.Parameter(THETA), ALPHA, inplace=True)
    with torch.inference_mode():
        rk.road_apply(x, THETA, ALPHA)
    assert in_cpp == [True] * 9


class Subclass(torch.Tensor):
    pass


def test_what_python_decides(in_cpp):
    x = make_x(4, 64)
    want = rk.road_apply(x, THETA, ALPHA)
    with rk.use_backend("python"):
        torch.testing.assert_close(rk.road_apply(x, THETA, ALPHA), want)
    rk.set_backend("python")
    try:
        torch.testing.assert_close(rk.road_apply(x, THETA, ALPHA), want)
    finally:
        rk.set_backend(None)
    torch.testing.assert_close(rk.road_apply(x, THETA, ALPHA, backend="python"), want)
    torch.testing.assert_close(torch.vmap(lambda row: rk.road_apply(row, THETA, ALPHA))(x), want)
    _, tangent = torch.func.jvp(lambda t: rk.road_apply(t, THETA, ALPHA), (x,), (x,))
    torch.testing.assert_close(tangent, want)
    torch.testing.assert_close(rk.road_apply(x.as_subclass(Subclass), THETA, ALPHA), want, check_stride=False)
    with torch._subclasses.FakeTensorMode():
        assert rk.road_apply(torch.empty(4, 64), torch.empty(32), torch.empty(32)).shape == (4, 64)
    with pytest.raises(ValueError, match="group_size"):
        rk.road_apply(x, THETA, ALPHA, group_size=3)
    with pytest.raises(ValueError, match="variant"):
        rk.road_apply(x, THETA, ALPHA, variant="table")
    with pytest.raises(TypeError, match="adapter_ids"):
        rk.road_apply_batched(x, *BANK, None)
    assert in_cpp == [True] + [False] * 10
    rk.road_apply(x, THETA, ALPHA)
    rk.set_backend(AUTOMATIC)  # what the kernels of the extension serve anyway
    try:
        rk.road_apply(x, THETA, ALPHA)
        with rk.use_backend("python"):
            rk.road_apply(x, THETA, ALPHA)
    finally:
        rk.set_backend(None)
    rk.road_apply(x, THETA, ALPHA)
    assert in_cpp[-4:] == [True, True, False, True]


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("form", ["road_1", "road_2", "road_4", "table", "table_half"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_both_ways_record_the_same(form, inplace, batched):
    """The node of C++ and the Function of Python, which serves where there is no extension."""
    p, q = make_params(form, 3 if batched else None, 64)
    name, ids = ("table" if form.startswith("table") else form), IDS if batched else None
    step = functional._rotate if name == "table" else functional._apply
    backend = importlib.import_module(f"road_kernels.backends.{AUTOMATIC}")
    results = []
    for record in (
        lambda *tensors: step(*tensors, ids, name, 16, inplace, False, None),
        lambda *tensors: Rotate.apply(*tensors, ids, name, 16, inplace, backend),
    ):
        x, p_, q_ = leaves(make_x(4, 64), p, q)
        z = record(x * 1, p_, q_)
        z.square().sum().backward()
        results.append((z.detach(), x.grad, p_.grad, q_.grad))
    assert all(map(torch.equal, *results))


def test_only_what_is_asked_for():
    x, theta, alpha = leaves(make_x(4, 64), THETA, ALPHA)
    gz = make_x(4, 64, seed=3)
    whole = torch.autograd.grad(rk.road_apply(x, theta, alpha), (x, theta, alpha), gz)
    for k, leaf in enumerate((x, theta, alpha)):
        (alone,) = torch.autograd.grad(rk.road_apply(x, theta, alpha), (leaf,), gz)
        assert torch.equal(alone, whole[k])
    z = rk.road_apply(x, THETA, ALPHA)
    (gx,) = torch.autograd.grad(z, (x,), gz)
    assert torch.equal(gx, whole[0])


def test_saved_tensors(in_cpp):
    """Hooks see what is saved: x, theta and alpha, and of x nothing if no parameter needs a gradient."""
    saved = []
    x, theta, alpha = leaves(make_x(4, 64), THETA, ALPHA)
    h = x * 2
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rk.road_apply(h, theta, alpha).sum().backward()
        assert saved == [h.data_ptr(), theta.data_ptr(), alpha.data_ptr()]
        saved.clear()
        rk.road_apply(x * 1, THETA, ALPHA).sum().backward()
        assert saved == [THETA.data_ptr(), ALPHA.data_ptr()]
    assert in_cpp == [True, True]


def test_hooks_and_versions():
    x, theta, alpha = leaves(make_x(4, 64), THETA, ALPHA)
    h = x * 1
    z = rk.road_apply(h, theta, alpha, inplace=True)
    assert z is h and z._version > 0
    seen = []
    z.register_hook(lambda g: seen.append(g.shape))
    theta.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.shape))
    z.sum().backward()
    assert seen == [(4, 64), (32,)]
    z = rk.road_apply(x * 1, theta, alpha)
    alpha.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.slow
def test_compiled_autograd():
    def backward(fullgraph):
        x, theta, alpha = leaves(make_x(4, 64), THETA, ALPHA)
        z = rk.road_apply_batched(x * 2, *leaves(*BANK), IDS).sum() + rk.road_apply(x, theta, alpha).square().sum()
        if fullgraph:
            torch._dynamo.reset()
            with torch._dynamo.compiled_autograd._enable(
                torch.compile(lambda gm: gm, backend="aot_eager", fullgraph=True)
            ):
                z.backward()
        else:
            z.backward()
        return x.grad, theta.grad, alpha.grad

    for got, want in zip(backward(True), backward(False), strict=True):
        torch.testing.assert_close(got, want)
