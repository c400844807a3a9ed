"""Fused calls in one step of C++, and those that Python decides: the same results, and which is which."""

import pytest
import torch
from support.fused_cases import OPS, make

import road_kernels as rk
from road_kernels.ops.extension import EXTENSION, REASON

IDS = torch.tensor([2, -1, 0, 2])


def step_of(op):
    """The call in one step of C++, with the arguments that the public function gives it."""
    if EXTENSION is None:
        pytest.skip(f"needs the extension: {REASON}")

    def call(case, **changes):
        k, inplace, backend = case.keywords, changes.pop("inplace", False), changes.pop("backend", None)
        tensors = case.x, *case.args, case.r1, case.r2, changes.pop("ids", case.ids)
        tail = {
            "silu_mul": (k["group_size"],),
            "add_rms_norm": (k.get("eps"), k["group_size"], inplace),
            "rope": (
                *(k.get(n) for n in ("num_heads", "num_kv_heads", "head_dim", "is_neox")),
                k["group_size"],
                inplace,
            ),
        }[op]
        return getattr(EXTENSION, f"rotate_{op}")(*tensors, *tail, backend)

    return call


@pytest.mark.cpu_only
@pytest.mark.parametrize("op", OPS)
def test_calls_in_one_step(op):
    """Plain calls take one step; those that it must not decide are left to Python."""
    step = step_of(op)
    case = make(op, (4, 3), 16, 8, ids=IDS)
    got = step(case)
    for g, w in zip(got if isinstance(got, tuple) else (got,), case.run(), strict=True):
        assert torch.equal(g, w)
    assert step(case, backend="cpu") is not NotImplemented
    assert step(case, backend="python") is NotImplemented
    assert step(case, ids=IDS.float()) is NotImplemented
    with rk.use_backend("python"):
        assert step(case) is NotImplemented
    for k, t in enumerate(case.differentiable):
        t.requires_grad_()
        assert step(case) is NotImplemented, k
        with torch.no_grad():
            assert step(case) is not NotImplemented
        t.requires_grad_(False)
    seen = []
    torch.func.vmap(lambda r1: seen.append(step(case)) or r1)(case.r1)
    assert seen == [NotImplemented]
    if op != "silu_mul":
        assert step(case, inplace=True) is not NotImplemented
        case.x = case.x[:1].expand(4, 3, -1)
        assert step(case, inplace=True) is NotImplemented
