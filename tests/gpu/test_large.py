"""More than 2^31 elements: 64-bit offsets, forward and backward, aligned and not."""

import pytest
import torch
from gpu_work import make_ids
from support.problems import make_params

import road_kernels as rk
from road_kernels.backends import registry

ROWS, DIM = 2**31 // 4096 + 77, 4096
CHUNK = 2**17


@pytest.fixture(autouse=True)
def memory():
    need = 48 << 30
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"less than {need >> 30} GiB of GPU memory are free")
    yield
    torch.cuda.empty_cache()


def random_rows(offset: int) -> torch.Tensor:
    """[ROWS, DIM] bfloat16, `offset` elements past an aligned address."""
    buffer = torch.empty(offset + ROWS * DIM, dtype=torch.bfloat16)
    x = buffer[offset:].view(ROWS, DIM)
    for part in x.split(CHUNK):
        part.normal_()
    return x


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_forward_and_backward(kernels, batched, offset):
    x, gz = random_rows(offset), random_rows(offset)
    theta, alpha = make_params("road_1", 1000 if batched else None, DIM)
    ids = make_ids(ROWS, 1000) if batched else None
    backend = registry._loaded[kernels][0]

    def forward(x, ids):
        if batched:
            return rk.road_apply_batched(x, theta, alpha, ids, backend=kernels)
        return rk.road_apply(x, theta, alpha, backend=kernels)

    def backward(gz, x, ids):
        return backend.rotate_backward(gz, x, theta, alpha, ids, "road_1", 64, False, [True, True, True])

    parts = [(slice(a, a + CHUNK), None if ids is None else ids[a : a + CHUNK]) for a in range(0, ROWS, CHUNK)]
    z = forward(x, ids)
    for part, part_ids in parts:
        assert torch.equal(z[part], forward(x[part], part_ids))
    del z
    gx, *grads = backward(gz, x, ids)
    sums = [torch.zeros_like(g, dtype=torch.float64) for g in grads]
    for part, part_ids in parts:
        part_gx, *part_grads = backward(gz[part], x[part], part_ids)
        assert torch.equal(gx[part], part_gx)
        for total, g in zip(sums, part_grads, strict=True):
            total += g
    for got, want in zip(grads, sums, strict=True):
        # Sums of random signs grow like the root of their number; float32 partial sums lose less than 3e-5 of that.
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=3e-5 * (2 * ROWS) ** 0.5)


def test_in_place_and_back(kernels):
    x = random_rows(0)
    kept = x[-3:].clone()
    angles = torch.rand(DIM // 2)
    r1, r2 = angles.cos(), angles.sin()
    rk.rotate(x, r1, r2, inplace=True, backend=kernels)
    assert torch.equal(x[-3:], rk.rotate(kept, r1, r2, backend=kernels))


def test_rows_that_lie_more_than_two_to_the_31_apart(kernels):
    stride = 2**31 // 2 + 8
    buffer = torch.empty(3 * stride, dtype=torch.bfloat16)
    x = buffer.as_strided((3, 64), (stride, 1))
    x.normal_()
    theta, alpha = make_params("road_1", None, 64)
    want = rk.road_apply(x.contiguous(), theta, alpha, backend=kernels)
    assert torch.equal(rk.road_apply(x, theta, alpha, backend=kernels), want)
    rk.road_apply(x, theta, alpha, inplace=True, backend=kernels)
    assert torch.equal(x, want)


def test_merging(kernels):
    columns = 2**31 // 4096 + 8
    weight = torch.empty(DIM, columns, dtype=torch.bfloat16)
    for part in weight.split(512):
        part.normal_()
    theta, alpha = make_params("road_2", None, DIM)
    merged, _ = rk.road_merge(weight, None, theta, alpha, variant="road_2", backend=kernels)
    for part in (slice(0, 8), slice(columns - 8, columns)):
        want, _ = rk.road_merge(weight[:, part], None, theta, alpha, variant="road_2", backend=kernels)
        assert torch.equal(merged[:, part], want)
