"""The fused ops on a device: one kernel each, streams, graphs, tensors beyond 2^31 elements."""

import pytest
import torch
from fused_work import NORM_BACKWARD, WORK, make_fused
from gpu_work import (
    assert_ordered_on_the_current_stream,
    assert_repeatable,
    assert_replays_read_current_contents,
    device_events,
    is_torchs,
    make_ids,
    refusing_synchronisation,
)
from support.problems import make_params

import road_kernels as rk
from road_kernels.backends import registry


@pytest.mark.parametrize("group_size", [128, 64, 2], ids=lambda g: f"group {g}")
@pytest.mark.parametrize("name", WORK)
def test_one_kernel(kernels, name, group_size):
    """All gradients have two, after one that sorts the ids of a mixed batch; nothing of torch's."""
    events = device_events(make_fused(name, kernels, group_size=group_size))
    assert not any(map(is_torchs, events)), events
    assert len(events) == (1 if not name.endswith("backward") else 3 if "batched" in name else 2), events


@pytest.mark.parametrize("name", WORK)
def test_no_call_synchronises(kernels, name):
    work = make_fused(name, kernels)
    work()
    with refusing_synchronisation():
        work()


@pytest.mark.parametrize("name", WORK)
def test_work_is_ordered_on_the_current_stream(kernels, name):
    assert_ordered_on_the_current_stream(make_fused(name, kernels))


@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("name", WORK)
def test_replays_read_current_contents(kernels, name, form):
    """x, tables, ids and positions all change between replays."""
    assert_replays_read_current_contents(lambda seed: make_fused(name, kernels, form, seed=seed))


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize("name", WORK)
def test_bitwise_repeatable(kernels, name, rows):
    assert_repeatable(make_fused(name, kernels, rows=rows))


@pytest.mark.parametrize("name", [n for n in WORK if "backward" not in n])
def test_inputs_made_by_the_kernel_in_front(kernels, name):
    """Launched dependently, a kernel may start before the one in front has finished, which writes x."""
    work = make_fused(name, kernels, rows=256)
    width = work.case.x.shape[-1]
    weight = torch.randn(512, width, dtype=torch.bfloat16) / 22
    source = [torch.randn(256, 512, dtype=torch.bfloat16) for _ in range(3)]
    kept = [t.clone() for t in work.tensors()]

    def step(k):
        for t, value in zip(work.tensors(), kept, strict=True):
            t.copy_(value)
        work.case.x = torch.matmul(source[k], weight)
        return [t.clone() for t in work()]

    want = []
    for k in range(3):
        want.append(step(k))
        torch.cuda.synchronize()
    got = [step(k % 3) for k in range(30)]
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for k, result in enumerate(got) for a, b in zip(result, want[k % 3], strict=True))


ROWS, DIM, CHUNK = 2**31 // 4096 + 77, 4096, 2**17


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("op", ["silu_mul", "add_rms_norm", NORM_BACKWARD, "rope"])
def test_more_than_two_to_the_31_elements(kernels, op, offset):
    need = 40 << 30
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"less than {need >> 30} GiB of GPU memory are free")
    x = torch.empty(offset + ROWS * DIM, dtype=torch.bfloat16)[offset:].view(ROWS, DIM)
    for part in x.split(CHUNK):
        part.normal_()
    tables, ids = make_params("table_half", 1000, DIM), make_ids(ROWS, 1000)
    positions = torch.arange(ROWS) % 512
    angles = torch.rand(512, 64)
    cache = torch.cat((angles.cos(), angles.sin()), dim=-1)
    weight = torch.rand(DIM)

    def run(rows):
        x_rows, id_rows = x[rows], ids[rows]
        if op == "silu_mul":
            return rk.rotate_silu_mul(x_rows, *tables, id_rows, backend=kernels)
        if op == NORM_BACKWARD:
            return registry._loaded[kernels][0].add_rms_norm_backward(x_rows, x_rows, x_rows, weight, 1e-6)
        if op == "add_rms_norm":
            return rk.rotate_add_rms_norm(x_rows, x_rows, weight, *tables, id_rows, backend=kernels)[0]
        heads = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 128}
        return rk.rotate_rope(x_rows, positions[rows], cache, *tables, id_rows, **heads, backend=kernels)

    z = run(slice(None))
    for begin in range(0, ROWS, CHUNK):
        part = slice(begin, begin + CHUNK)
        assert torch.equal(z[part], run(part))
    del z
    torch.cuda.empty_cache()
