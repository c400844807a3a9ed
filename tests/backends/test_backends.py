"""Which backend serves a call, and what is said when one cannot."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.common import DEVICE, make_params, make_x

import road_kernels as rk
from road_kernels.backends import registry

ISAS = ("default", "avx2", "avx512", "avx512_bf16")
X, (THETA, ALPHA) = make_x(2, 64), make_params("road_1", None, 64)


def test_info_names_every_backend_and_why_not():
    info = rk.backend_info()
    assert list(info["backends"]) == ["cuda", "cpu", "triton", "python", "cuda_shim"]  # the last is the tests' own
    for row in info["backends"].values():
        assert row["usable"] == (row["reason"] is None)
        assert row["usable"] == (row["devices"] is not None)
    assert info["backends"]["python"]["usable"]
    if info["build"]:
        assert info["build"]["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
        assert info["build"]["cpu_isa"] in ISAS
        assert info["build"]["openmp"]


@pytest.fixture
def calls(monkeypatch):
    """The names of the backends that calls of rk.road_apply reach."""
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
    # use_backend(None) lifts nothing: None means "no wish", so the inner block sees the best one.
    assert [c for c in calls if c] == [best, "python", best, best, "python", best, best]


def test_use_backend_is_of_one_thread_and_ends_with_an_error(calls):
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
        if DEVICE in row["devices"]:  # nothing to refuse: it must work
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


@pytest.mark.cpu_only
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_numbers_up_to_rounding(isa):
    """Each in a process of its own: the choice is made once."""
    script = """
import sys, torch, road_kernels as rk
sys.path.insert(0, sys.argv[1])
from support.common import DTYPES, FORMS, apply, arithmetic_of, assert_close
from support.common import expect_backward, expect_forward, make_params, make_x
for dtype in DTYPES:
    for form in FORMS:
        for dim, g in ((192, 64), (70, 2), (18, 6)):
            x, gz = make_x(5, dim, dtype=dtype).requires_grad_(), make_x(5, dim, dtype=dtype, seed=2)
            p, q = (t.requires_grad_() for t in make_params(form, None, dim))
            z = apply(x, p, q, form, group_size=g, backend="cpu")
            z.backward(gz)
            assert_close(z, expect_forward(x, p, q, form, g), arithmetic_of(dtype))
            for got, want in zip((x.grad, p.grad, q.grad), expect_backward(gz, x, p, q, form, g)):
                assert_close(got, want, arithmetic_of(dtype), units=7)
for g in (2, 64):  # every finite bfloat16, scaled and rounded: subnormal ones are where instructions differ
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(-1, 128)
    every = torch.where(every.isfinite(), every, 0)
    for scale in (1.0, 0.7, 3e-39):
        z = rk.rotate(every, torch.full((64,), scale), torch.zeros(64), group_size=g, backend="cpu")
        assert torch.equal(z.view(torch.int16), (every.float() * scale).bfloat16().view(torch.int16))
print(rk.backend_info()["build"]["cpu_isa"])
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parents[1])],
        env={**os.environ, "ROAD_KERNELS_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    if run.stdout.strip() != isa:
        pytest.skip(f"this processor has no {isa}; {run.stdout.strip()} ran and is right")
