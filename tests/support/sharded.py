"""What the ranks of the DTensor tests do: a public function on DTensors, beside the same call in one process."""

import functools

import torch
from support.problems import apply, make_params, make_x
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import road_kernels as rk

PLACEMENTS = {"whole": Replicate(), "rows": Shard(0), "tokens": Shard(1), "features": Shard(2), "sum": Partial()}


@functools.cache  # a new mesh of a shape would be new process groups
def mesh(*shape):
    return init_device_mesh("cpu", shape)


def place(t, on, placements) -> DTensor:
    """As distribute_tensor, and partial sums over one mesh dimension: 2t of each rank, the rest of the first."""
    if not any(p.is_partial() for p in placements):
        return distribute_tensor(t.clone(), on, placements)  # a replicated one may share the memory of t
    share = t * (1 - 2 * (on.size() - 1)) if on.get_local_rank() == 0 else t * 2
    return DTensor.from_local(share, on, placements, run_check=False)


def whole(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def problem(form, dim, batched=False, dtype=torch.float32):
    """x [5, 5, D], p, q, ids or None, and gz, the gradient of z."""
    x, (p, q) = make_x(5, 5, dim, dtype=dtype), make_params(form, 4 if batched else None, dim)
    ids = torch.tensor([2, -1, 0, 0, 3]) if batched else None
    return x, p, q, ids, make_x(5, 5, dim, dtype=dtype, seed=5)


def call(x, p, q, ids, gz, form, group_size, inplace=False):
    """z, gx, gp, gq."""
    leaves = [t.detach().requires_grad_() for t in (x, p, q)]
    h = leaves[0].clone() if inplace else leaves[0]
    z = apply(h, *leaves[1:], form, ids, group_size=group_size, inplace=inplace)
    return z, *torch.autograd.grad(z, leaves, gz)


def check_call(rank, shards, form, batched, inplace, name, dim=32, group_size=8, dtype=torch.float32):
    """Where each result lies, that it is the one of one process, and that nothing was sent."""
    on = mesh(shards)
    x, p, q, ids, gz = problem(form, dim, batched, dtype)
    want = call(x, p, q, ids, gz, form, group_size, inplace)
    placement = PLACEMENTS[name]
    of_p = [Shard(p.ndim - 1)] if name == "features" else [Replicate()]
    of_ids = [placement] if name == "rows" else [Replicate()]
    args = [place(x, on, [placement]), place(p, on, of_p), place(q, on, of_p)]
    args += [None if ids is None else place(ids, on, of_ids)]
    # What follows a partial sum adds it up, and so its gradient is whole.
    gz = place(gz, on, [Replicate() if name == "sum" else placement])
    with CommDebugMode() as sent:
        z, gx, gp, gq = got = call(*args, gz, form, group_size, inplace)
    assert sent.get_total_counts() == 0, sent.get_comm_counts()
    assert z.placements == (placement,)
    assert gx.placements == gz.placements
    summed = name in ("rows", "tokens", "sum")
    # The order in which PyTorch sums over rows depends on the width; that of the kernels does not.
    by_kernels = rk.backend_info()["automatic"]["cpu"] == "cpu"
    assert gp.placements == gq.placements == ((Partial(),) if summed else tuple(of_p))
    for k, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        if name == "sum" or (k > 1 and (summed or not by_kernels)):
            scale = theirs.abs().max().item() * len(x.flatten()) ** 0.5
            torch.testing.assert_close(whole(mine), theirs, rtol=0, atol=4 * torch.finfo(theirs.dtype).eps * scale)
        else:
            assert torch.equal(whole(mine), theirs)


def check_moved(rank, name, cut, expected, sent_by, form="road_1", dim=24, group_size=8):
    """A placement that no rank can compute by itself: redistributed, and right."""
    on = mesh(2)
    x, p, q, *_ = problem(form, dim)
    args = place(x, on, [PLACEMENTS[name]]), place(p, on, [cut]), place(q, on, [cut])
    with CommDebugMode() as sent:
        z = apply(*args, form, group_size=group_size)
    assert {str(op).rpartition(".")[2]: n for op, n in sent.get_comm_counts().items()} == sent_by
    assert z.placements == (expected,)
    assert torch.equal(whole(z), apply(x, p, q, form, group_size=group_size))


def check_two_dims(rank, dtype):
    """Rows over one dimension of a mesh and features over the other, and features over both."""
    on = mesh(2, 2)
    for group_size, placements, of_p in (
        (8, [Shard(0), Shard(2)], [Replicate(), Shard(0)]),
        (8, [Shard(2), Shard(2)], [Shard(0), Shard(0)]),
        (8, [Partial(), Replicate()], [Replicate(), Replicate()]),
    ):
        x, p, q, ids, gz = problem("road_2", 32, dtype=dtype)
        want = call(x, p, q, ids, gz, "road_2", group_size)
        if placements[0].is_partial():
            row = on.get_local_rank(0)
            x_ = DTensor.from_local(x * (2 if row else -1), on, placements, run_check=False)
        else:
            x_ = place(x, on, placements)
        gz = place(gz, on, [Replicate() if p.is_partial() else p for p in placements])
        p_, q_ = place(p, on, of_p), place(q, on, of_p)
        with CommDebugMode() as sent:
            got = call(x_, p_, q_, None, gz, "road_2", group_size)
        assert sent.get_total_counts() == 0
        assert got[0].placements == tuple(placements)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(whole(mine), theirs, rtol=1e-5, atol=1e-5)


def loss(z):
    """Not invariant under rotations, as a sum of squares is, for which the gradients of angles are noise."""
    return (z.float().square() * torch.linspace(0.5, 2, z.shape[-1])).sum()


def refusal(function) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def refusals(rank) -> dict[str, str]:
    on = mesh(2)
    x, p, q, *_ = problem("road_1", 24)
    dx, dp, dq = place(x, on, [Shard(2)]), place(p, on, [Replicate()]), place(q, on, [Replicate()])
    ids = torch.zeros(5, dtype=torch.int64)
    before = dx.to_local().clone()
    sub = init_device_mesh("cpu", (1, 2))
    found = {
        "cut": refusal(lambda: rk.road_apply(dx, dp, dq, group_size=8, inplace=True)),
        "plain parameters": refusal(lambda: rk.road_apply(dx, p, q, group_size=8, inplace=True)),
        "plain x": refusal(lambda: rk.road_apply(x, dp, dq, group_size=8)),
        "plain ids": refusal(lambda: rk.road_apply_batched(dx, dp[None], dq[None], ids, group_size=8)),
        "mesh": refusal(lambda: rk.road_apply(dx, place(p, sub, [Replicate()] * 2), dq, group_size=8)),
        "backend": refusal(lambda: rk.road_apply(dx, dp, dq, group_size=8, backend="python")),
        "group_size": refusal(lambda: rk.road_apply(dx, dp, dq, group_size=10)),
        "plain table": refusal(lambda: rk.road_tables(dp, q, group_size=8)),
        "plain weight": refusal(lambda: rk.road_merge(x[0].T, None, dp, dq, group_size=8)),
    }
    assert torch.equal(dx.to_local(), before)
    return found


def check_tables_and_merge(rank, shards, variant, group_size):
    on = mesh(shards)
    weight, bias = make_x(32, 6), make_x(32)
    theta, alpha = make_params(variant, None, 32)
    adapter = {"variant": variant, "group_size": group_size}
    want = rk.road_merge(weight, bias, theta, alpha, **adapter)
    tables = rk.road_tables(theta, alpha, **adapter)
    for of_w, of_b in ((Replicate(), Replicate()), (Shard(0), Shard(0)), (Shard(1), Replicate())):
        for of_p in (Replicate(), Shard(0)):
            w, b, t, a = (
                place(weight, on, [of_w]),
                place(bias, on, [of_b]),
                place(theta, on, [of_p]),
                place(alpha, on, [of_p]),
            )
            for got, exact in zip(rk.road_tables(t, a, **adapter), tables, strict=True):
                assert torch.equal(whole(got), exact)
            for inplace in (False, True):
                merged = rk.road_merge(w, b, t, a, inplace=inplace, **adapter)
                for got, exact, of in zip(merged, want, (of_w, of_b), strict=True):
                    assert torch.equal(whole(got), exact)
                    assert got.placements == (of,)
                back = rk.road_unmerge(*merged, t, a, inplace=inplace, **adapter)
                for got, exact, of in zip(back, (weight, bias), (of_w, of_b), strict=True):
                    torch.testing.assert_close(whole(got), exact, rtol=1e-6, atol=1e-6)
                    assert got.placements == (of,)
            assert merged[0] is w and back[1] is b
    singular = place(torch.zeros_like(alpha), on, [Replicate()])
    w = place(weight, on, [Shard(0)])
    assert "cannot invert" in refusal(
        lambda: rk.road_unmerge(w, None, place(theta, on, [Replicate()]), singular, **adapter)
    )


def check_ops(rank):
    """torch.ops.road_kernels on DTensors: the ops in place write where the shards are, and send nothing."""
    on, ops = mesh(2), torch.ops.road_kernels
    x, p, q, *_ = problem("table_half", 16)
    weight = make_x(16, 6)
    r1, r2 = place(p, on, [Replicate()]), place(q, on, [Replicate()])
    for placement in PLACEMENTS.values():
        h = place(x, on, [placement])
        memory = h.to_local().data_ptr()
        with CommDebugMode() as sent:
            assert ops.rotate_(h, r1, r2, None, "table", 8, False) is None
        assert sent.get_total_counts() == 0 and h.to_local().data_ptr() == memory
        torch.testing.assert_close(whole(h), rk.rotate(x, p, q, group_size=8), rtol=1e-6, atol=1e-6)
        assert h.placements == (placement,)
    for placement in (Replicate(), Shard(0), Shard(1), Partial()):
        w = place(weight, on, [placement])
        with CommDebugMode() as sent:
            mixed = ops.mix_rows(w, r1, r2, 8)
            assert ops.mix_rows_(w, r1, r2, 8) is None
        assert sent.get_total_counts() == 0 and mixed.placements == w.placements == (placement,)
        assert torch.equal(whole(mixed), whole(w))
        torch.testing.assert_close(whole(w), rk.rotate(weight.t(), p, q, group_size=8).t(), rtol=1e-6, atol=1e-6)
    cut = place(weight, on, [Shard(0)])
    assert "mix_rows_ cannot write in place" in refusal(lambda: ops.mix_rows_(cut, r1, r2, 16))
    # Nothing is cached across forms: the parameters of road_2 are as wide as their tables, those of road_4 twice.
    wide = place(make_x(32), on, [Shard(0)])
    for form, width in (("road_2", 32), ("road_4", 16), ("road_2", 32)):
        assert ops.tables(wide, wide, form, 8, torch.float32)[0].shape == (width,)


def check_saved(rank):
    """Autograd knows of writes into a DTensor, with and without gradients."""
    on = mesh(2)
    x, p, q, *_ = problem("road_1", 16)
    dp, dq = place(p, on, [Replicate()]), place(q, on, [Replicate()])
    for record in (True, False):
        leaf = place(x, on, [Shard(0)]).requires_grad_()
        h = leaf.clone()
        square = h * h
        with torch.set_grad_enabled(record):
            rk.road_apply(h if record else h.detach(), dp, dq, group_size=8, inplace=True)
        assert "modified by an inplace operation" in refusal(lambda square=square: square.sum().backward())


def check_second_order(rank, name):
    on = mesh(2)
    x, p, q = (t.double() for t in problem("road_2", 16)[:3])

    def derivatives(*leaves):
        leaves = [t.detach().requires_grad_() for t in leaves]
        z = rk.road_apply(*leaves, variant="road_2", group_size=8)
        first = torch.autograd.grad((z * z).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), leaves)

    x = x[:4]  # DTensor does not flatten uneven shards
    got = derivatives(place(x, on, [PLACEMENTS[name]]), place(p, on, [Replicate()]), place(q, on, [Replicate()]))
    for mine, theirs in zip(got, derivatives(x, p, q), strict=True):
        torch.testing.assert_close(whole(mine), theirs, rtol=1e-6, atol=1e-6)


def check_compiled(rank, inplace):
    on = mesh(2)
    x, p, q, *_ = problem("road_1", 16)

    def layer(x, p, q):
        return rk.road_apply(x * 1, p, q, group_size=8, inplace=inplace)

    results = []
    for function in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        leaves = [place(t, on, [of]).requires_grad_() for t, of in ((x, Shard(2)), (p, Replicate()), (q, Replicate()))]
        z = function(*leaves)
        results.append([z, *torch.autograd.grad(z, leaves, torch.ones_like(z))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(whole(compiled), whole(eager), rtol=1e-6, atol=1e-6)
        assert compiled.placements == eager.placements
