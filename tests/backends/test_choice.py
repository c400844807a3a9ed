"""Which backend a call uses, and the error when it cannot be used."""

import importlib
import threading

import pytest
import torch
from support.backends import DEVICE
from support.problems import make_params, make_x

import road_kernels as rk
from road_kernels.backends import registry

X, (THETA, ALPHA) = make_x(2, 64), make_params("road_1", None, 64)


def test_info_names_every_backend_and_why_not():
    info = rk.backend_info()
    assert list(info["backends"]) == ["cuda", "cpu", "triton", "python", "cuda_shim"]  # the last one is the tests'
    for row in info["backends"].values():
        assert row["usable"] == (row["reason"] is None)
        assert row["usable"] == (row["devices"] is not None)
    assert info["backends"]["python"]["usable"]
    if info["build"]:
        assert info["build"]["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
        assert info["build"]["cpu_isa"] in ("default", "avx2", "avx512", "avx512_bf16")
        assert info["build"]["openmp"] == ("OpenMP" not in info["build"]["without"])


@pytest.fixture
def calls(monkeypatch):
    """Records the name of the backend that each call of rk.road_apply reaches."""
    seen = []
    for name, (module, _) in registry._loaded.items():
        if module is not None:
            spy = lambda *a, _name=name, _rotate=module.rotate: seen.append(_name) or _rotate(*a)  # noqa: E731
            monkeypatch.setattr(module, "rotate", spy)
    functional = importlib.import_module("road_kernels.functional.rotate")
    in_cpp = functional._apply

    def spied(x, *args):
        z = in_cpp(x, *args)
        if z is not NotImplemented:  # by the compiled kernels, whose backend has the name of the device type
            seen.append(x.device.type)
        return z

    monkeypatch.setattr(functional, "_apply", spied)
    return seen


def test_choice(calls):
    best = rk.backend_info()["automatic"][DEVICE]
    rk.road_apply(X, THETA, ALPHA)
    with rk.use_backend("python"):
        rk.road_apply(X, THETA, ALPHA)
        with rk.use_backend(None):
            rk.road_apply(X, THETA, ALPHA)
        rk.road_apply(X, THETA, ALPHA, backend=best)
    rk.set_backend("python")
    try:
        rk.road_apply(X, THETA, ALPHA)
        with rk.use_backend(best):
            rk.road_apply(X, THETA, ALPHA)
    finally:
        rk.set_backend(None)
    rk.road_apply(X, THETA, ALPHA)
    # use_backend(None) chooses nothing, so the block inside it uses the best backend, not the outer block's.
    assert [c for c in calls if c] == [best, "python", best, best, "python", best, best]


def test_use_backend_applies_to_one_thread_and_ends_with_an_exception(calls):
    with pytest.raises(KeyError), rk.use_backend("python"):
        thread = threading.Thread(target=rk.road_apply, args=(X, THETA, ALPHA))
        thread.start()
        thread.join()
        raise KeyError
    rk.road_apply(X, THETA, ALPHA)
    assert calls == [rk.backend_info()["automatic"][DEVICE]] * 2


@pytest.mark.parametrize("name", ["cuda", "triton", "cpu"])
def test_a_named_backend_that_is_not_usable_raises_its_reason(name):
    row = rk.backend_info()["backends"][name]
    if row["usable"]:
        if DEVICE in row["devices"]:  # then it must work
            assert torch.equal(rk.road_apply(X, THETA, ALPHA, backend=name), rk.road_apply(X, THETA, ALPHA))
            return
        with pytest.raises(RuntimeError, match=f"backend '{name}' serves"):
            rk.road_apply(X, THETA, ALPHA, backend=name)
        return
    for call in (
        lambda: rk.road_apply(X, THETA, ALPHA, backend=name),
        lambda: rk.set_backend(name),
        lambda: rk.use_backend(name).__enter__(),
    ):
        with pytest.raises(RuntimeError, match=f"backend '{name}' is not usable here: ") as error:
            call()
        assert str(error.value).endswith(row["reason"])


def test_unknown_names():
    for call in (rk.set_backend, lambda n: rk.use_backend(n).__enter__()):
        with pytest.raises(ValueError, match=r"backend must be one of .* got 'gpu'"):
            call("gpu")
