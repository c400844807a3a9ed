"""What the ranks of the DTensor tests do with the fused ops."""

import torch
from support.fused_cases import make
from support.problems import make_x
from support.sharded import PLACEMENTS, mesh, place, refusal, whole
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from road_kernels.ops import schemas

WHOLE = Replicate()


def placed(case, on, name):
    """The tensors of a call and its ids as DTensors, x placed by name."""
    placement = PLACEMENTS[name]
    rows = placement if placement.is_shard() else WHOLE
    args = ()
    if case.op == "add_rms_norm":
        args = place(case.args[0], on, [rows]), place(case.args[1], on, [WHOLE])
    if case.op == "rope":
        args = place(case.args[0], on, [rows]), place(case.args[1], on, [WHOLE])
    of_ids = [Shard(0) if name == "rows" else WHOLE]
    ids = None if case.ids is None else place(case.ids, on, of_ids)
    tables = (place(t, on, [WHOLE]) for t in (case.r1, case.r2))
    return (place(case.x, on, [placement]), *args, *tables), ids


def run(case, tensors, ids, grads=None, **keywords):
    """Outputs, and gradients of the floating tensors but a cache, for gradients of the outputs."""
    plain = case.ids
    case.ids = ids
    leaves = [
        t.detach().requires_grad_(t.is_floating_point() and not (case.op == "rope" and k == 2))
        for k, t in enumerate(tensors)
    ]
    inputs = [t.clone() if keywords.get("inplace") else t for t in leaves]
    outputs = case.run_on(*inputs, **keywords)
    case.ids = plain
    wanted = [t for t in leaves if t.requires_grad]
    return outputs, torch.autograd.grad(outputs, wanted, grads)


def check_fused(rank, shards, op, name, batched, inplace):
    """Where each result lies, that it is the one of one process, and that nothing was sent."""
    on = mesh(shards)
    ids = torch.tensor([2, -1, 0, 0, 3]) if batched else None
    case = make(op, (5, 5), 16, 8, ids=ids)
    keywords = {"inplace": True} if inplace else {}
    grads = [make_x(*t.shape, seed=20 + k) for k, t in enumerate(case.run())]
    want, want_grads = run(case, (case.x, *case.args, case.r1, case.r2), ids, grads, **keywords)
    placement = PLACEMENTS[name]
    tensors, sharded_ids = placed(case, on, name)
    of_grad = WHOLE if placement.is_partial() else placement
    sharded_grads = [place(g, on, [of_grad]) for g in grads]
    with CommDebugMode() as sent:
        got, got_grads = run(case, tensors, sharded_ids, sharded_grads, **keywords)
    assert sent.get_total_counts() == 0, sent.get_comm_counts()
    for g, w in zip(got, want, strict=True):
        assert g.placements == (placement,)
        if name == "sum":
            torch.testing.assert_close(whole(g), w, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(whole(g), w)
    for g, w in zip(got_grads, want_grads, strict=True):
        assert g.placements in ((of_grad,), (Partial(),), (WHOLE,))
        torch.testing.assert_close(whole(g), w, rtol=1e-5, atol=1e-4)


def check_norm_gradient_of_partial_sums(rank):
    """Linear in gy and gs together: the gradients of what adds up over ranks, as after a row-parallel layer."""
    on = mesh(2)
    gy, gs, s = (make_x(5, 4, 16, seed=seed) for seed in (1, 2, 3))
    weight = make_x(16, seed=4)
    want = schemas.add_rms_norm_backward(gy, gs, s, weight, 1e-6)
    sums, rest = [place(t, on, [Partial()]) for t in (gy, gs)], [place(t, on, [WHOLE]) for t in (s, weight)]
    with CommDebugMode() as sent:
        got = schemas.add_rms_norm_backward(*sums, *rest, 1e-6)
    assert sent.get_total_counts() == 0, sent.get_comm_counts()
    assert got.placements == (Partial(),)
    torch.testing.assert_close(whole(got), want, rtol=1e-5, atol=1e-5)
    columns = [place(t, on, [Shard(2)]) for t in (gy, gs, s)]
    got = schemas.add_rms_norm_backward(*columns, place(weight, on, [WHOLE]), 1e-6)
    torch.testing.assert_close(whole(got), want, rtol=1e-5, atol=1e-5)


def check_features_move(rank, op):
    """x sharded by features is gathered: gate and up, q, k and v, and a norm's row lie together."""
    on = mesh(2)
    case = make(op, (5, 4), 16, 8)
    tensors, _ = placed(case, on, "whole")
    x = place(case.x, on, [Shard(2)])
    want = case.run()
    with CommDebugMode() as sent:
        got = case.run_on(x, *tensors[1:])
    assert sent.get_total_counts() > 0
    for g, w in zip(got, want, strict=True):
        assert torch.equal(whole(g), w)
    if op == "silu_mul":
        return
    before = x.to_local().clone()
    message = refusal(lambda: case.run_on(x, *tensors[1:], inplace=True))
    assert "cannot write in place" in message, message
    assert torch.equal(x.to_local(), before)


def fused_refusals(rank):
    on = mesh(2)
    case = make("add_rms_norm", (5, 4), 16, 8)
    tensors, _ = placed(case, on, "rows")
    return refusal(lambda: case.run_on(tensors[0], case.args[0], *tensors[2:]))
