"""opcheck, torch.compile, torch.export, fake and meta tensors."""

import pytest
import torch
from support.backends import DEVICE
from support.problems import apply, make_params, make_x, op_form
from torch.library import opcheck

import road_kernels as rk

pytestmark = pytest.mark.wiring

TRACED_AS_OP = pytest.mark.skipif(
    rk.backend_info()["automatic"][torch.device(DEVICE).type] == "python",
    reason="without a kernel torch.compile traces the formula, and with it its rules: see the test of those",
)
IDS = torch.tensor([2, -1, 0, 2])
OPS = torch.ops.road_kernels
EACH_KIND = pytest.mark.parametrize(
    ("form", "batched"), [("road_1", True), ("road_4", False), ("table_half", True)], ids=str
)


def op_arguments(form, batched, dtype=torch.float32):
    p, q = make_params(form, 3 if batched else None, 16, dtype=dtype)
    return p, q, IDS if batched else None, op_form(form), 8


@EACH_KIND
def test_opcheck(form, batched):
    p, q, *rest = op_arguments(form, batched)
    x, grad = make_x(4, 3, 16), make_x(4, 3, 16, seed=1)
    wants_grad = [t.clone().requires_grad_() for t in (x, p, q)]
    opcheck(OPS.rotate.default, (*wants_grad, *rest))
    opcheck(
        OPS.rotate.default, (x.transpose(0, 1).contiguous().transpose(0, 1), p, q, *rest), test_utils="test_faketensor"
    )
    opcheck(OPS.rotate_.default, (x.clone(), p, q, *rest, True))
    opcheck(
        OPS.rotate_backward.default,
        (grad, *wants_grad, *rest, False, [True, False, True]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    opcheck(
        OPS.rotate_backward.default, (grad, x, p, q, *rest, True, [False, True, False]), test_utils="test_faketensor"
    )


@pytest.mark.slow  # tracing it with symbolic shapes takes 7 s
@EACH_KIND
def test_opcheck_of_the_second_order_under_compile(form, batched):
    p, q, *rest = op_arguments(form, batched)
    wants_grad = [t.clone().requires_grad_() for t in (make_x(4, 3, 16), p, q)]
    opcheck(
        OPS.rotate_backward.default,
        (make_x(4, 3, 16, seed=1), *wants_grad, *rest, False, [True, False, True]),
        test_utils="test_aot_dispatch_dynamic",
    )


@pytest.mark.parametrize(
    ("batched", "inplace"),
    [
        pytest.param(False, False, id="single, out of place"),
        pytest.param(True, True, id="batched, in place"),
        pytest.param(False, True, id="single, in place", marks=pytest.mark.slow),
        pytest.param(True, False, id="batched, out of place", marks=pytest.mark.slow),
    ],
)
def test_compile(backend, batched, inplace):
    """One graph for forward and backward, compiled once for any number of rows."""
    p, q = (t.requires_grad_() for t in make_params("road_2", 3 if batched else None, 16))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def f(x, ids):
        y = x * 2
        return apply(y, p, q, "road_2", ids, group_size=8, inplace=inplace, backend=backend) + y

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for rows in (4, 4, 7, 9):
        ids = torch.arange(rows) % 4 - 1 if batched else None
        results = []
        for g in (f, compiled):
            x = make_x(rows, 3, 16).requires_grad_()
            p.grad = q.grad = None
            z = g(x, ids)
            z.square().sum().backward()
            results.append((z.detach(), x.grad, p.grad, q.grad))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_compile_follows_the_choice_of_backend():
    theta, alpha = make_params("road_1", None, 64)
    graphs = []

    def record(graph, inputs):
        graphs.append(any("road_kernels" in str(n.target) for n in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    f = torch.compile(lambda x: rk.road_apply(x, theta, alpha), fullgraph=True, backend=record)
    x = make_x(2, 64)
    f(x)
    with rk.use_backend("python"):
        f(x)
    assert graphs == [rk.backend_info()["automatic"][DEVICE] != "python", False]


@TRACED_AS_OP
def test_no_rule_for_arguments_is_a_guard():
    """Ours are the choice of a backend, and the level of forward-mode AD."""
    theta, alpha = make_params("road_1", None, 64)
    guarded = set()

    def see(guards):
        ours = [g for g in guards if "__import_road_kernels" in g.name]
        identities = ("MODULE_MATCH", "CLOSURE_MATCH", "BUILTIN_MATCH", "FUNCTION_MATCH", "ID_MATCH")
        guarded.update(g.name.partition("'].")[2] for g in ours if g.guard_type not in identities)
        return [True] * len(guards)

    torch._dynamo.reset()
    options = {"guard_filter_fn": see}
    f = torch.compile(lambda x: rk.road_apply(x, theta, alpha), fullgraph=True, options=options)
    f(make_x(2, 64))
    assert guarded <= {"_default", "_forced_last", "_WITH_KERNELS", "forward_ad._current_level"}


@pytest.mark.parametrize("fullgraph", [False, True])
def test_errors_while_the_formula_is_traced(fullgraph):
    """With fullgraph by Dynamo's own error, which nothing but an exception of ours causes here."""
    theta, alpha = make_params("road_1", None, 64)
    bank = make_params("road_1", 3, 64)
    x = make_x(4, 64)
    norm = torch.ones(64)
    calls = {
        "group_size must be even": lambda x: rk.road_apply(x, theta, alpha, group_size=3),
        "theta must be": lambda x: rk.road_apply(x, theta[:5], alpha),
        "variant must be": lambda x: rk.road_apply(x, theta, alpha, variant="rd_1"),
        "adapter_ids must be a prefix": lambda x: rk.road_apply_batched(x, *bank, IDS[:3]),
        "half of the last dimension": lambda x: rk.rotate_silu_mul(x, theta, alpha, group_size=64),
        "residual must match": lambda x: rk.rotate_add_rms_norm(x, x[:2], norm, theta, alpha),
        "the last dimension of qkv": lambda x: rk.rotate_rope(
            x, IDS, bank[0], theta, alpha, num_heads=2, num_kv_heads=1, head_dim=8, group_size=8
        ),
    }
    with rk.use_backend("python"):
        for message, call in calls.items():
            torch._dynamo.reset()
            with pytest.raises(torch._dynamo.exc.Unsupported if fullgraph else ValueError) as found:
                torch.compile(call, fullgraph=fullgraph, backend="eager")(x)
            assert fullgraph or message in str(found.value)


@TRACED_AS_OP
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_errors_while_tracing(inplace):
    """By the op's fake kernel, with the messages of eager calls, before anything is computed."""
    theta, alpha = make_params("road_1", None, 64)
    bank = make_params("road_1", 3, 64)
    x = make_x(4, 64)
    for call, message in (
        (lambda x: rk.road_apply(x, theta, alpha, group_size=3, inplace=inplace), "group_size must be even"),
        (lambda x: rk.road_apply(x, theta[:5], alpha, inplace=inplace), "theta must be"),
        (lambda x: rk.road_apply(x, theta, alpha, variant="table", inplace=inplace), "variant must be"),
        (lambda x: rk.road_apply_batched(x, *bank, IDS[:3], inplace=inplace), "adapter_ids must be a prefix"),
        (lambda x: rk.road_apply_batched(x, *bank, None, inplace=inplace), "adapter_ids must be a torch.Tensor"),
    ):
        torch._dynamo.reset()
        before = x.clone()
        with pytest.raises(Exception, match=message):
            torch.compile(call, backend="eager")(x)
        assert torch.equal(x, before)


class Layer(torch.nn.Module):
    def forward(self, x, theta, alpha, ids):
        return rk.road_apply_batched(x, theta, alpha, ids, group_size=8)


def test_export():
    rows = torch.export.Dim("rows")
    x, (theta, alpha) = make_x(4, 3, 16), make_params("road_1", 3, 16)
    program = torch.export.export(Layer(), (x, theta, alpha, IDS), dynamic_shapes=({0: rows}, None, None, {0: rows}))
    more, ids = make_x(6, 3, 16), torch.tensor([0, 1, 2, -1, 1, 1])
    assert torch.equal(program.module()(more, theta, alpha, ids), Layer()(more, theta, alpha, ids))


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, theta = torch.empty(3, 64, dtype=torch.bfloat16), torch.empty(32)
        assert rk.road_apply(x, theta, theta).shape == (3, 64)
    x, theta = torch.empty(3, 64, device="meta"), torch.empty(32, device="meta")
    assert rk.road_apply(x, theta, theta).device.type == "meta"
