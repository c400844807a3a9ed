"""IA3, SSF, OFT and the butterfly as tables of the op, each against its own definition in float64."""

import math

import pytest
import torch
from support.problems import make_x

import road_kernels as rk
from road_kernels import neighbours

DIM = 16


def rotate(x, tables, group_size, backend, ids=None):
    if ids is None:
        return rk.rotate(x, *tables, group_size=group_size, backend=backend)
    return rk.rotate_batched(x, *tables, ids, group_size=group_size, backend=backend)


@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("tables_of", [neighbours.ia3_tables, neighbours.ssf_tables])
def test_ia3_and_ssf_scale_every_feature(backend, tables_of, group_size):
    x, scale = make_x(5, DIM), make_x(DIM, seed=1)
    assert torch.equal(rotate(x, tables_of(scale), group_size, backend), x * scale)
    bank, ids = make_x(3, DIM, seed=2), torch.tensor([2, -1, 0, 2, 1])
    want = torch.where(ids[:, None] == -1, x, x * bank[ids])
    assert torch.equal(rotate(x, tables_of(bank), group_size, backend, ids), want)


def cayley(q, group_size):
    """(I + Q)(I - Q)^-1 with the skew Q of OFT's 2x2 blocks, dense."""
    skew = torch.zeros(DIM, DIM, dtype=torch.float64)
    half = group_size // 2
    for pair, value in enumerate(q.tolist()):
        i = pair // half * group_size + pair % half
        skew[i, i + half], skew[i + half, i] = -value, value
    eye = torch.eye(DIM, dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


@pytest.mark.parametrize("group_size", [2, 8])
def test_oft_by_cayley(backend, group_size):
    x, q = make_x(5, DIM), 3 * make_x(2, DIM // 2, seed=1)
    ids = torch.tensor([1, 0, 1, -1, 0])
    z = rotate(x, neighbours.oft_tables(q), group_size, backend, ids)
    matrices = [cayley(one, group_size) for one in q.double()] + [torch.eye(DIM, dtype=torch.float64)]
    want = torch.stack([matrices[i] @ row for i, row in zip(ids.tolist(), x.double(), strict=True)])
    torch.testing.assert_close(z.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        rotate(x, neighbours.oft_tables(q[0]), group_size, backend)[1].double(), want[1], rtol=1e-6, atol=1e-6
    )


def test_oft_starts_at_the_identity_and_survives_any_q():
    assert torch.equal(torch.stack(neighbours.oft_tables(torch.zeros(4))), torch.tensor([[1.0] * 4, [0.0] * 4]))
    r1, r2 = neighbours.oft_tables(torch.tensor([1e30, -1e30]))  # q * q overflows
    torch.testing.assert_close(r1, torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(r2, torch.zeros(2), rtol=0, atol=1e-6)


def givens(i, j, angle, scale):
    matrix = torch.eye(DIM, dtype=torch.float64)
    matrix[i, i] = matrix[j, j] = scale * math.cos(angle)
    matrix[i, j], matrix[j, i] = -scale * math.sin(angle), scale * math.sin(angle)
    return matrix


def dense_butterfly(theta, alpha):
    """The product of all Givens rotations; stage s pairs features 2^s apart in blocks of 2^(s + 1)."""
    result = torch.eye(DIM, dtype=torch.float64)
    for stage, (angles, scales) in enumerate(zip(theta.tolist(), alpha.tolist(), strict=True)):
        step, pair = 2**stage, 0
        for block in range(0, DIM, 2 * step):
            for i in range(block, block + step):
                result = givens(i, i + step, angles[pair], scales[pair]) @ result
                pair += 1
    return result


@pytest.mark.parametrize("grad", [False, True])
def test_butterfly_is_the_product_of_its_givens_rotations(backend, grad):
    x, theta = make_x(5, DIM), make_x(4, DIM // 2, seed=1)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        z = neighbours.butterfly(x, theta.requires_grad_(grad), backend=backend)
    matrix = dense_butterfly(theta.double(), torch.ones_like(theta).double())
    torch.testing.assert_close(z.double(), x.double() @ matrix.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
    assert (matrix.abs() > 1e-12).all()  # log2(D) stages: every feature reaches every other
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(DIM, dtype=torch.float64))
    if grad:
        z.square().sum().backward()
        assert theta.grad.shape == theta.shape


def test_batched_butterfly_with_scales(backend):
    x, ids = make_x(5, DIM), torch.tensor([2, -1, 0, 2, 1])
    theta, alpha = make_x(3, 3, DIM // 2, seed=1), 1 + 0.1 * make_x(3, 3, DIM // 2, seed=2)
    with torch.no_grad():
        z = neighbours.butterfly(x, theta, alpha, ids, backend=backend)
    for row, adapter in enumerate(ids.tolist()):
        matrix = dense_butterfly(theta[:, adapter].double(), alpha[:, adapter].double())
        want = x[row].double() if adapter < 0 else matrix @ x[row].double()
        torch.testing.assert_close(z[row].double(), want, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_butterfly():
    x, theta, alpha = (
        t.double().requires_grad_() for t in (make_x(2, 8), make_x(3, 4, seed=1), 1 + 0.1 * make_x(3, 4, seed=2))
    )
    assert torch.autograd.gradcheck(neighbours.butterfly, (x, theta, alpha))


def test_bad_arguments():
    x = make_x(5, DIM)
    with pytest.raises(ValueError, match=r"theta must be \[S, D/2\], got \[8\]"):
        neighbours.butterfly(x, torch.zeros(8))
    with pytest.raises(ValueError, match=r"theta must be \[S, A, D/2\], got \[4, 8\]"):
        neighbours.butterfly(x, torch.zeros(4, 8), adapter_ids=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="alpha must have the shape of theta"):
        neighbours.butterfly(x, torch.zeros(4, 8), torch.ones(8))
    with pytest.raises(ValueError, match="group_size must be even"):
        neighbours.butterfly(x, torch.zeros(5, 8))  # one stage too many
    for call in (
        lambda: neighbours.ia3_tables([1.0, 2.0]),
        lambda: neighbours.ssf_tables(torch.ones(4, dtype=torch.int64)),
        lambda: neighbours.oft_tables(None),
        lambda: neighbours.butterfly(x, "theta"),
        lambda: neighbours.butterfly(x, torch.zeros(4, 8), 1.0),
    ):
        with pytest.raises(TypeError, match=r"must be (a torch.Tensor|float16)"):
            call()
