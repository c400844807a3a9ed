"""Gradients of the fused ops: gradcheck to second order, and float32 and 16 bits against float64."""

import pytest
import torch
from support.fused_cases import OPS, make
from support.problems import make_x
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

IDS = torch.tensor([2, -1, 0, 2])


def gradients(case, backend, wanted=None, **keywords):
    leaves = [t.detach().clone().requires_grad_() for t in case.differentiable]
    if wanted is not None:
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(want)
    inputs = [t * 1 for t in leaves[: 2 if case.op == "add_rms_norm" else 1]] if keywords.get("inplace") else []
    outputs = case.run_differentiable(*inputs, *leaves[len(inputs) :], backend=backend, **keywords)
    grads = [make_x(*t.shape, dtype=t.dtype, seed=20 + k) for k, t in enumerate(outputs)]
    torch.autograd.backward(outputs, grads)
    return [t.grad for t in leaves]


@pytest.mark.numerical
@pytest.mark.parametrize(("op", "inplace"), [*((op, False) for op in OPS), ("add_rms_norm", True), ("rope", True)])
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_gradcheck(backend, op, batched, form, inplace):
    case = make(
        op,
        (4,),
        4,
        4,
        form=form,
        ids=IDS if batched else None,
        adapters=3,
        dtype=torch.float64,
        param_dtype=torch.float64,
        **({"rotary_dim": 2, "is_neox": batched} if op == "rope" else {}),
    )
    leaves = [t.requires_grad_() for t in case.differentiable]

    def f(x, *rest):
        rest = list(rest)
        if inplace:
            rest[0] = rest[0] * 1 if op == "add_rms_norm" else rest[0]
            return case.run_differentiable(x * 1, *rest, inplace=True, backend=backend)
        return case.run_differentiable(x, *rest, backend=backend)

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize(("size", "group_size"), [(6, 6), (70, 2), (128, 64)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_against_float64(backend, op, size, group_size, batched, form, dtype):
    """Scaled by the largest gradient: a few units of the stored dtype, as steps in between are rounded to it."""
    case = make(op, (4, 5), size, group_size, form=form, ids=IDS if batched else None, dtype=dtype)
    wide = make(op, (4, 5), size, group_size, form=form, ids=case.ids, dtype=torch.float64, param_dtype=torch.float64)
    wide.x, wide.r1, wide.r2 = case.x.double(), case.r1.double(), case.r2.double()
    if op != "silu_mul":
        wide.args = tuple(t.double() if t.is_floating_point() else t for t in case.args)
    for got, want in zip(gradients(case, backend), gradients(wide, "python"), strict=True):
        bound = max(4 * torch.finfo(dtype).eps, 20 * torch.finfo(torch.float32).eps)
        assert (got.double() - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize("op", ["add_rms_norm", "rope"])
def test_in_place_gradients_are_those_out_of_place(backend, op):
    case = make(op, (4, 5), 32, 8, ids=IDS)
    for a, b in zip(gradients(case, backend), gradients(case, backend, inplace=True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_only_what_is_asked_for(backend, op):
    case = make(op, (4, 5), 32, 8, ids=IDS)
    everything = gradients(case, backend)
    for k in range(len(everything)):
        wanted = [k == other for other in range(len(everything))]
        for got, full, want in zip(gradients(case, backend, wanted), everything, wanted, strict=True):
            assert torch.equal(got, full) if want else got is None


@pytest.mark.parametrize("op", OPS)
def test_many_rows_are_summed_deterministically(backend, op):
    case = make(op, (1500,), 32, 8, ids=torch.randint(-1, 4, (1500,)))
    wide = make(op, (1500,), 32, 8, ids=case.ids, dtype=torch.float64, param_dtype=torch.float64)
    wide.x, wide.r1, wide.r2 = case.x.double(), case.r1.double(), case.r2.double()
    if op != "silu_mul":
        wide.args = tuple(t.double() if t.is_floating_point() else t for t in case.args)
    first, second = gradients(case, backend), gradients(case, backend)
    for a, b, want in zip(first, second, gradients(wide, "python"), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


def test_silu_mul_saves_x_and_nothing_else_of_its_size(backend):
    case = make("silu_mul", (16,), 64, 16, dtype=torch.bfloat16)
    saved = []
    leaves = [t.requires_grad_() for t in case.differentiable]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t.shape, t.dtype)) or t, lambda t: t):
        case.run_differentiable(*leaves, backend=backend)
    assert [s for s in saved if s[0].numel() >= 16 * 64] == [(case.x.shape, torch.bfloat16)]


class Made(TorchDispatchMode):
    """The ops that have made a tensor of so many elements, in their order."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.ops = elements, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        given = {t.data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.data_ptr() not in given]
        if any(t.numel() >= self.elements for t in made):
            self.ops.append(op._schema.name)
        return result


BY_KERNELS = {
    "silu_mul": ["rotate_silu_mul_backward"],
    "add_rms_norm": ["add_rms_norm_backward", "rotate_backward"],
    "rope": ["rotate_rope", "rotate_backward"],
}


@pytest.mark.backend("cpu")
@pytest.mark.cpu_only
@pytest.mark.parametrize("positions", [7, 40], ids=["few positions", "more positions than the cache has"])
@pytest.mark.parametrize("op", OPS)
def test_nothing_but_kernels_makes_a_tensor_of_the_gradients_size(op, positions):
    """No concatenation, no copy, no float32 in between."""
    rope = {"positions": torch.arange(positions) % 30, "rotary_dim": 24} if op == "rope" else {}
    case = make(op, (3, positions), 32, 8, ids=torch.tensor([1, -1, 0]), dtype=torch.bfloat16, **rope)
    leaves = [t.requires_grad_() for t in (case.x, case.r1, case.r2)]
    outputs = case.run(backend="cpu")
    grads = [torch.ones_like(t) for t in outputs]
    with Made(grads[0].numel()) as made:
        torch.autograd.grad(outputs, leaves, grads)
    assert made.ops == [f"road_kernels::{name}" for name in BY_KERNELS[op]]


ROPES = {
    "half of a head": {"rotary_dim": 24},
    "adjacent, a quarter": {"is_neox": False, "rotary_dim": 12},
    "an odd half": {"rotary_dim": 26},
    "positions for all": {"positions": torch.tensor([5, 39, 0, 39, 7])},
    "positions of a request": {"positions": torch.tensor([[3], [0], [39], [7]], dtype=torch.int32)},
    "one position": {"positions": torch.tensor(11)},
    "float32 cache": {"cache_dtype": torch.float32},
}


@pytest.mark.parametrize("group_size", [2, 16, 48])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_ropes(backend, rope, group_size):
    """The pairs of RoPE and of the rotation cross in every way, and the cache is longer and shorter than the batch."""
    for rows in (4, 52):
        ids = IDS.repeat(rows // 4)
        if "positions" in rope and rope["positions"].dim() == 2:
            rope = rope | {"positions": rope["positions"].repeat(rows // len(rope["positions"]), 1)}
        case = make("rope", (rows, 5), 48, group_size, ids=ids, dtype=torch.bfloat16, **rope)
        wide = make(
            "rope", (rows, 5), 48, group_size, ids=ids, dtype=torch.float64, param_dtype=torch.float64,
            x=case.x.double(), **(rope | {"cache_dtype": torch.float64}),
        )  # fmt: skip
        wide.r1, wide.r2, wide.args = case.r1.double(), case.r2.double(), (case.args[0], case.args[1].double())
        for got, want in zip(gradients(case, backend), gradients(wide, "python"), strict=True):
            bound = 4 * torch.finfo(torch.bfloat16).eps if got.dtype == torch.bfloat16 else 1e-2
            assert (got.double() - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize("op", OPS)
def test_any_gradient(backend, op):
    """Of a sum, which repeats one number, and of a transposed result; in a batch of gradients, too."""
    case = make(op, (4, 3), 32, 8, ids=IDS)
    leaves = [t.requires_grad_() for t in (case.x, case.r1, case.r2)]
    z = case.run(backend=backend)[0]
    turned = make_x(3, 4, z.shape[-1]).transpose(0, 1)
    for grad in (torch.ones(()).expand_as(z), turned):
        want = torch.autograd.grad(z, leaves, grad.contiguous(), retain_graph=True)
        for got, w in zip(torch.autograd.grad(z, leaves, grad, retain_graph=True), want, strict=True):
            torch.testing.assert_close(got, w, rtol=1e-6, atol=1e-6)
    if backend == "cuda_shim":
        return  # its functions are no ops, which vmap could take apart
    many = torch.stack((turned, turned * 2))
    want = [torch.autograd.grad(z, leaves, grad, retain_graph=True) for grad in many]
    for got, *w in zip(torch.autograd.grad(z, leaves, many, is_grads_batched=True), *want, strict=True):
        torch.testing.assert_close(got, torch.stack(w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_a_call_without_gradients_records_nothing(backend, op):
    case = make(op, (4,), 16, 8)
    assert all(t.grad_fn is None for t in case.run(backend=backend))
    with torch.no_grad():
        case.x.requires_grad_()
        assert all(t.grad_fn is None for t in case.run(backend=backend))


@pytest.mark.parametrize("op", OPS)
def test_tables_of_theta_and_alpha(backend, op):
    """Gradients reach the parameters through road_tables."""
    import road_kernels as rk

    case = make(op, (4,), 16, 8)
    theta, alpha = torch.zeros_like(case.r1).requires_grad_(), torch.ones_like(case.r1).requires_grad_()
    r1, r2 = rk.road_tables(theta, alpha, group_size=8)
    case.run_on(case.x, *case.args, r1, r2, backend=backend)[0].sum().backward()
    assert theta.grad.abs().max() > 0 and alpha.grad.abs().max() > 0


@pytest.mark.parametrize("op", OPS)
def test_adapters_without_rows_have_gradients_of_zero(backend, op):
    case = make(op, (4,), 16, 8, ids=torch.tensor([0, 0, -1, 2]))
    case.r1[1] = float("nan")
    *_, gr1, gr2 = gradients(case, backend)
    for g in (gr1, gr2):
        assert not g[[1, 3]].any()
        assert g[[0, 2]].isfinite().all()
