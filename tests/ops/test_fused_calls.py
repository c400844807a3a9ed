"""In place, wrong arguments, torch.compile, export, opcheck, transforms: what a call is wrapped in."""

import pytest
import torch
from support.expected import assert_close, same
from support.fused_cases import OPS, expect, make
from support.problems import make_x

import road_kernels as rk
from road_kernels.ops import schemas

IN_PLACE = ("add_rms_norm", "rope")
IDS = torch.tensor([2, -1, 0, 2])


def written(case):
    """The tensors that an in-place call writes."""
    return [case.x, case.args[0]] if case.op == "add_rms_norm" else [case.x]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("op", IN_PLACE)
def test_in_place(backend, op, batched, dtype):
    case = make(op, (4, 3), 48, 24, ids=IDS if batched else None, dtype=dtype)
    want = case.run(backend=backend)
    versions = [t._version for t in written(case)]
    got = case.run(backend=backend, inplace=True)
    for g, target, w, version in zip(got, written(case), want, versions, strict=True):
        assert g is target
        assert torch.equal(g, w)
        assert g._version == version + 1


@pytest.mark.parametrize("op", IN_PLACE)
def test_in_place_into_slices_of_columns(backend, op):
    case = make(op, (4, 3), 16, 8)
    want = case.run(backend=backend)
    around = []
    for t in written(case):
        whole = torch.full((4, 3, t.shape[-1] + 3), 7.0)
        whole[..., 2:-1] = t
        around.append(whole)
    case.x = around[0][..., 2:-1]
    if op == "add_rms_norm":
        case.args = (around[1][..., 2:-1], case.args[1])
    case.run(backend=backend, inplace=True)
    for whole, w in zip(around, want, strict=True):
        assert torch.equal(whole[..., 2:-1], w)
        assert (whole[..., :2] == 7).all() and (whole[..., -1] == 7).all()


@pytest.mark.parametrize("op", IN_PLACE)
def test_in_place_into_columns(backend, op):
    """A layout that no kernel walks: rows whose elements are not adjacent."""
    case = make(op, (6,), 16, 8)
    want = case.run(backend=backend)
    case.x = case.x.t().contiguous().t()
    assert not case.x.is_contiguous()
    for g, w in zip(case.run(backend=backend, inplace=True), want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


def test_in_place_refusals(backend):
    case = make("add_rms_norm", (4,), 16, 8)
    both = make_x(4, 16)
    weight = case.args[1]
    for x, residual in ((both, both), (both[:, :16], both), (make_x(5, 16)[:4], None)):
        if residual is None:
            base = make_x(5, 16)
            x, residual = base[:4], base[1:]
        before = x.clone()
        with pytest.raises(ValueError, match="residual shares memory with x"):
            rk.rotate_add_rms_norm(x, residual, weight, case.r1, case.r2, group_size=8, inplace=True, backend=backend)
        assert torch.equal(x, before)
    table = torch.ones(4, 16)
    with pytest.raises(ValueError, match="shares memory with its parameters"):
        rk.rotate_add_rms_norm(
            make_x(4, 16), table, table[0], case.r1, case.r2, group_size=8, inplace=True, backend=backend
        )
    leaf = make_x(4, 16).requires_grad_()
    with pytest.raises(RuntimeError, match="residual is a leaf"):
        rk.rotate_add_rms_norm(
            make_x(4, 16), leaf, weight, case.r1, case.r2, group_size=8, inplace=True, backend=backend
        )
    rope = make("rope", (4,), 16, 8)
    with pytest.raises(ValueError, match="qkv of shape"):
        rope.run_on(rope.x[:1].expand(4, -1), *rope.args, rope.r1, rope.r2, inplace=True, backend=backend)


def wrong(op, match, error=ValueError, **changes):
    return pytest.param(op, match, error, changes, id=f"{op}: {match}")


BANK = {"r1": torch.ones(2, 16), "r2": torch.ones(2, 16)}
WRONG = [
    wrong("silu_mul", "group_size must divide half of the last dimension of x", group_size=32),
    wrong("silu_mul", "r1 must be \\[32\\] or \\[16\\]", r1=torch.ones(8)),
    wrong("silu_mul", "adapter_ids says which of a bank", **BANK),
    wrong("silu_mul", "adapter_ids must be int32 or int64", TypeError, ids=torch.zeros(4), **BANK),
    wrong("silu_mul", "x must be float16", TypeError, x=torch.zeros(4, 32, dtype=torch.int32)),
    wrong("add_rms_norm", "residual must match x", args=(make_x(4, 8), torch.ones(16))),
    wrong("add_rms_norm", "residual must match x", args=(make_x(4, 16).double(), torch.ones(16))),
    wrong("add_rms_norm", "weight must be \\[16\\]", args=(make_x(4, 16), torch.ones(17))),
    wrong("add_rms_norm", "weight must be a torch.Tensor", TypeError, args=(make_x(4, 16), None)),
    wrong("add_rms_norm", "eps must be a number", TypeError, eps="small"),
    wrong("add_rms_norm", "eps must not be negative", eps=-1e-6),
    wrong("add_rms_norm", "eps must not be negative", eps=float("nan")),
    wrong("rope", "the last dimension of qkv must be", num_heads=4),
    wrong("rope", "num_kv_heads must be positive", num_kv_heads=0),
    wrong("rope", "head_dim must be an int", TypeError, head_dim=16.0),
    wrong("rope", "group_size must be even, positive and divide head_dim", group_size=56),
    wrong("rope", "is_neox must be a bool", TypeError, is_neox=1),
    wrong("rope", "positions must be a dense int32 or int64", TypeError, positions=torch.zeros(4)),
    wrong("rope", "positions must be \\[4\\]", positions=torch.zeros(5, dtype=torch.int64)),
    wrong("rope", "positions must be \\[4\\]", positions=torch.zeros(4, 4, dtype=torch.int64)),
    wrong("rope", "cos_sin_cache must be \\[max_position", cache=torch.ones(8, 18)),
    wrong("rope", "cos_sin_cache must be \\[max_position", cache=torch.ones(8, 7)),
    wrong("rope", "cos_sin_cache must be float32", TypeError, cache=torch.ones(8, 16, dtype=torch.bfloat16)),
]


@pytest.mark.parametrize(("op", "match", "error", "changes"), WRONG)
def test_wrong_arguments(backend, op, match, error, changes):
    """By the public function and, where a compiled backend checks for itself, by its op."""
    case = make(op, (4,), 16, 8)
    tensors = {"x": case.x, "args": case.args, "r1": case.r1, "r2": case.r2, "ids": None} | changes
    case.keywords |= {k: v for k, v in changes.items() if k in case.keywords}
    case.ids = tensors["ids"]
    if op == "rope":
        case.args = changes.get("positions", case.args[0]), changes.get("cache", case.args[1])
    else:
        case.args = tensors["args"]
    with pytest.raises(error, match=match):
        case.run_on(tensors["x"], *case.args, tensors["r1"], tensors["r2"], backend=backend)


@pytest.mark.wiring
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, batched):
    case = make(op, (4,), 16, 8, ids=IDS if batched else None)
    k = case.keywords
    tail = {
        "silu_mul": (k["group_size"],),
        "add_rms_norm": (k.get("eps"), k["group_size"]),
        "rope": (*(k.get(n) for n in ("num_heads", "num_kv_heads", "head_dim", "is_neox")), k["group_size"]),
    }[op]
    tensors = case.x, *case.args, case.r1, case.r2
    leaves = [t.clone().requires_grad_(t.is_floating_point() and t is not (case.args or [0, 0])[-1]) for t in tensors]
    torch.library.opcheck(getattr(schemas, f"rotate_{op}"), (*leaves, case.ids, *tail))
    if op == "silu_mul":
        grad = make_x(4, 16)
        torch.library.opcheck(schemas.rotate_silu_mul_backward, (grad, *leaves, case.ids, *tail, [True, True, True]))
    else:
        torch.library.opcheck(getattr(schemas, f"rotate_{op}_"), (*(t.clone() for t in tensors), case.ids, *tail))


@pytest.mark.parametrize("op", IN_PLACE)
def test_ops_in_place_have_no_gradient_of_their_own(op):
    case = make(op, (4,), 16, 8)
    case.r1.requires_grad_()
    k = case.keywords
    tail = (
        (k["eps"], 8) if op == "add_rms_norm" else (k["num_heads"], k["num_kv_heads"], k["head_dim"], k["is_neox"], 8)
    )
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        getattr(schemas, f"rotate_{op}_")(case.x, *case.args, case.r1, case.r2, None, *tail)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("op", OPS)
def test_compile(op, train):
    case = make(op, (4, 3), 16, 8, ids=IDS)
    leaves = [t.clone().requires_grad_(train) for t in case.differentiable]
    function = lambda *t: case.run_differentiable(*t)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, got = function(*leaves), compiled(*leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)
    if train:
        sums = [sum(t.sum() for t in result) for result in (got, want)]
        for g, w in zip(*(torch.autograd.grad(s, leaves) for s in sums), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", IN_PLACE)
def test_compile_in_place(op):
    case = make(op, (4, 3), 16, 8)
    want = case.run()
    compiled = torch.compile(lambda: case.run(inplace=True), fullgraph=True, backend="aot_eager")
    compiled()
    for t, w in zip(written(case), want, strict=True):
        torch.testing.assert_close(t, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_export(op):
    case = make(op, (4, 3), 16, 8, ids=IDS)

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.run_on(*tensors)

    tensors = case.x, *case.args, case.r1, case.r2
    program = torch.export.export(Module(), tensors)
    for g, w in zip(program.module()(*tensors), case.run(), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_vmap_and_jvp(backend, op):
    case = make(op, (4, 3), 16, 8)
    f = lambda x, r1: case.run_differentiable(x, *case.differentiable[1:-2], r1, case.r2, backend=backend)[0]  # noqa: E731
    many = torch.stack((case.r1, case.r1 * 2))
    got = torch.vmap(f, in_dims=(None, 0))(case.x, many)
    assert same("python", got[0], f(case.x, many[0])) or torch.allclose(got[0], f(case.x, many[0]), atol=1e-5)
    assert torch.allclose(got[1], f(case.x, many[1]), rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(lambda x: f(x, case.r1), (case.x,), (torch.ones_like(case.x),))
    step = 1e-3
    difference = (f(case.x + step, case.r1) - f(case.x - step, case.r1)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_have_shapes(op):
    case = make(op, (4, 3), 16, 8)
    want = case.run()
    case.x, case.r1, case.r2 = (t.to("meta") for t in (case.x, case.r1, case.r2))
    case.args = tuple(t.to("meta") for t in case.args)
    for g, w in zip(case.run(), want, strict=True):
        assert (g.shape, g.dtype, g.device.type) == (w.shape, w.dtype, "meta")


@pytest.mark.parametrize("op", OPS)
def test_autocast_leaves_dtypes_alone(op):
    case = make(op, (4,), 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for g, want in zip(case.run(), expect(case), strict=True):
            assert g.dtype == torch.float32
            assert_close(g, want, torch.float32, units=6)
