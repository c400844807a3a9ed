"""Mixed batches of bfloat16 rows, as cases of gpu_targets.py and gpu_tune.py: forward, backward, decoding."""

from functools import partial

import torch

import road_kernels as rk
from road_kernels import python_fallback
from road_kernels.backends import registry

from .gpu_cases import DTYPE, add_tables, expect_gradients, gradients_sampled, gradients_tolerance, sampled, tensors
from .harness.accuracy import rounding
from .harness.backends import kernel_backends
from .harness.case import Case, Provider
from .harness.cold_inputs import Inputs

REQUESTS, ADAPTERS, MOST_DECODE_ROWS = 64, 1000, 256
SINGLE, ONE, SPREAD, RANDOM = "single", "one adapter", "64 requests", f"{ADAPTERS} adapters at random"
MEMCPY = "memcpy of as many bytes"


def ids_for(kind: str, rows: int, device) -> torch.Tensor:
    """One id per row: all the same, an adapter per request in random order, or a random adapter per token."""
    generator = torch.Generator().manual_seed(1)
    if kind == ONE:
        return torch.zeros(rows, dtype=torch.int64, device=device)
    if kind == RANDOM:
        return torch.randint(0, ADAPTERS, (rows,), generator=generator).to(device)
    requests = min(REQUESTS, rows)
    order = torch.randperm(REQUESTS, generator=generator)[:requests]
    return order.repeat_interleave(rows // requests).to(device)


def expect_rotated_by(i: Inputs, ids: torch.Tensor):
    """The sampled rows, each by the adapter of its id."""
    tables = python_fallback.road_tables(i.theta.double(), i.alpha.double(), "road_1", 64)
    return python_fallback.rotate_batched(i.x[i.sample].double(), *tables, ids[i.sample], 64)


def batched_case(rows, dim, backend, table_dtype, device) -> Case:
    """With ready tables of ``table_dtype``, as a server has them, or with theta and alpha (None), as a trainer has."""
    inputs = tensors(rows, dim, ADAPTERS, device)
    add_tables(inputs, "road_1", 64, table_dtype or torch.float32)
    requests = min(REQUESTS, rows)
    inputs.ids = {kind: ids_for(kind, rows, device) for kind in (ONE, SPREAD, RANDOM)}
    per_request = {kind: inputs.ids[kind][:: rows // requests].contiguous() for kind in (ONE, SPREAD)}
    given = ("r1", "r2") if table_dtype else ("theta", "alpha")
    single, batched = (rk.rotate, rk.rotate_batched) if table_dtype else (rk.road_apply, rk.road_apply_batched)

    def run_single(i):
        return single(i.x, *(getattr(i, n)[0] for n in given), backend=backend)

    def run(i, kind):
        x, ids = i.x, i.ids[kind]
        if kind in per_request:
            x, ids = x.view(requests, rows // requests, dim), per_request[kind]
        return batched(x, *(getattr(i, n) for n in given), ids, backend=backend).view(rows, dim)

    def expect(i, kind):
        return expect_rotated_by(i, i.ids[kind])

    exact = {"tolerance": rounding(DTYPE) * (1 if table_dtype != DTYPE else 4), "view": sampled, "ours": True}
    providers = [Provider(SINGLE, run_single, partial(expect, kind=ONE), **exact)]
    providers += [Provider(kind, partial(run, kind=kind), partial(expect, kind=kind), **exact) for kind in inputs.ids]
    what = f"{str(table_dtype).removeprefix('torch.')} tables" if table_dtype else "theta and alpha"
    axes = {"work": f"batched forward, {rows} x {dim}, {what}"}
    return Case(axes, inputs, providers, 2 * inputs.x.nbytes, SINGLE)


def batched_backward_case(rows, dim, backend, kind, device) -> Case:
    inputs = tensors(rows, dim, ADAPTERS if kind == RANDOM else REQUESTS, device)
    requests = rows if kind == RANDOM else min(REQUESTS, rows)
    inputs.ids = ids_for(kind, rows, device)[:: rows // requests].contiguous()
    module = registry._loaded[backend][0]
    wanted = [True, True, True]

    def run_single(i):
        return module.rotate_backward(i.gz, i.x, i.theta[0], i.alpha[0], None, "road_1", 64, False, wanted)

    def run(i):
        gz, x = (t.view(requests, rows // requests, dim) for t in (i.gz, i.x))
        gx, *grads = module.rotate_backward(gz, x, i.theta, i.alpha, i.ids, "road_1", 64, False, wanted)
        return gx.view(rows, dim), *grads

    def expect(i):
        x, gz, theta, alpha = (t.double() for t in (i.x, i.gz, i.theta, i.alpha))
        tables = python_fallback.road_tables(theta, alpha, "road_1", 64)
        ids = i.ids.repeat_interleave(rows // requests)
        gx, *grads = python_fallback.rotate_batched_backward(gz, x, *tables, ids, 64)
        return gx[i.sample], *python_fallback.road_tables_backward(*grads, theta, alpha, "road_1", 64)

    exact = {"tolerance": gradients_tolerance(rows), "view": gradients_sampled, "ours": True}
    providers = [
        Provider(SINGLE, run_single, partial(expect_gradients, variant="road_1", group_size=64), **exact),
        Provider(kind, run, expect, **exact),
    ]
    return Case({"work": f"batched backward, {rows} x {dim}"}, inputs, providers, 3 * inputs.x.nbytes, SINGLE)


def decode_case(rows, dim, device) -> Case:
    """Each row its own adapter, in place; with overlap where there is. Beside it a copy by the driver that moves as
    many bytes: those of x twice, and of the tables.
    """
    inputs = tensors(rows, dim, MOST_DECODE_ROWS, device)
    add_tables(inputs, "road_1", 64)
    inputs.ids = torch.randperm(MOST_DECODE_ROWS, generator=torch.Generator().manual_seed(1))[:rows].to(device)

    def run(i, backend, overlap=False):
        return rk.rotate_batched(i.x, i.r1, i.r2, i.ids, inplace=True, overlap=overlap, backend=backend)

    def expect(i):
        return expect_rotated_by(i, i.ids)

    exact = {"expect": expect, "tolerance": rounding(DTYPE), "view": sampled, "output": "in place", "ours": True}
    backends = kernel_backends(device)
    providers = [Provider(n, partial(run, backend=n), **exact) for n in backends]
    if "cuda" in backends:
        providers.append(Provider("cuda, overlap", partial(run, backend="cuda", overlap=True), **exact))
    moved = 2 * inputs.x.nbytes + 4 * rows * dim

    def source_and_target(_):
        return tuple(torch.ones(moved // 8, dtype=torch.int32, device=device) for _ in range(2))

    providers.append(Provider(MEMCPY, lambda s: s[1].copy_(s[0]), None, prepare=source_and_target))
    work = f"decode, {rows} x {dim}, each row its own adapter, in place"
    return Case({"work": work}, inputs, providers, moved, MEMCPY)
