"""Two tasks in disjoint halves of one layer's pairs, trained and used by different rows of one batch."""

import pytest
import torch
from support.problems import make_params, make_x

import road_kernels as rk

DIM, GROUP, TOKENS = 24, 6, 5
A_PAIRS, B_PAIRS = range(0, 6), range(6, 12)
ONLY_A, ONLY_B, BOTH, NONE = 0, 1, 2, -1
A_FEATURES = [*range(0, 12)]  # pairs 0 .. 5 with group_size 6: the features of the first two groups
B_FEATURES = [*range(12, 24)]


def parameters(dtype=torch.float32):
    task_a, task_b = make_params("road_1", None, DIM, dtype, 1), make_params("road_1", None, DIM, dtype, 2)
    return [t.requires_grad_() for t in (*task_a, *task_b)]


def bank_of(theta_a, alpha_a, theta_b, alpha_b):
    """Tables [3, D/2] for A's half, B's half and both; differentiable."""
    a = rk.road_tables(theta_a, alpha_a, group_size=GROUP)
    b = rk.road_tables(theta_b, alpha_b, group_size=GROUP)
    adapters = (
        rk.select_pairs(a, A_PAIRS, dim=DIM, group_size=GROUP),
        rk.select_pairs(b, B_PAIRS, dim=DIM, group_size=GROUP),
        rk.combine([(a, A_PAIRS), (b, B_PAIRS)], dim=DIM, group_size=GROUP),
    )
    return [torch.stack(tables) for tables in zip(*adapters, strict=True)]


def last_token(ids):
    per_token = torch.full((len(ids), TOKENS), -1)
    per_token[:, -1] = torch.tensor(ids)
    return per_token


def run(x, ids, params, backend):
    return rk.rotate_batched(x, *bank_of(*params), last_token(ids), group_size=GROUP, backend=backend)


def test_each_row_uses_its_own_range_at_its_own_position(backend):
    x = make_x(4, TOKENS, DIM)
    params = parameters()
    z = run(x, [ONLY_A, ONLY_B, BOTH, NONE], params, backend)
    assert torch.equal(z[:, :-1], x[:, :-1])  # other positions pass through bit for bit
    assert torch.equal(z[0, -1, B_FEATURES], x[0, -1, B_FEATURES])
    assert torch.equal(z[1, -1, A_FEATURES], x[1, -1, A_FEATURES])
    assert torch.equal(z[3], x[3])
    whole_a = rk.road_apply(x[:, -1], *params[:2], group_size=GROUP)
    whole_b = rk.road_apply(x[:, -1], *params[2:], group_size=GROUP)
    for row, features, want in ((0, A_FEATURES, whole_a), (2, A_FEATURES, whole_a), (1, B_FEATURES, whole_b)):
        torch.testing.assert_close(z[row, -1, features], want[row, features], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z[2, -1, B_FEATURES], whole_b[2, B_FEATURES], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ids, a_learns, b_learns", [(ONLY_A, True, False), (ONLY_B, False, True), (BOTH, True, True)])
def test_gradients_reach_only_the_range_that_the_row_used(backend, ids, a_learns, b_learns):
    x, params = make_x(2, TOKENS, DIM), parameters()
    z = run(x, [ids, NONE], params, backend)
    grads = torch.autograd.grad(z, params, make_x(2, TOKENS, DIM, seed=3))
    for grad, pairs, learns in zip(
        grads, (A_PAIRS, A_PAIRS, B_PAIRS, B_PAIRS), (a_learns, a_learns, b_learns, b_learns), strict=True
    ):
        inside = torch.zeros(DIM // 2, dtype=torch.bool)
        inside[list(pairs)] = True
        assert not grad[~inside].any()  # exactly zero
        assert (grad[inside] != 0).all() if learns else not grad.any()


def test_both_at_once_trains_as_each_alone(backend):
    """The halves are disjoint, so the gradient of a row that uses both consists of the two separate gradients."""
    x, gz = make_x(1, TOKENS, DIM), make_x(1, TOKENS, DIM, seed=3)
    params = parameters()
    together = torch.autograd.grad(run(x, [BOTH], params, backend), params, gz)
    alone_a = torch.autograd.grad(run(x, [ONLY_A], params, backend), params[:2], gz)
    alone_b = torch.autograd.grad(run(x, [ONLY_B], params, backend), params[2:], gz)
    for got, want in zip(together, (*alone_a, *alone_b), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.numerical
def test_gradcheck_through_the_bank(backend):
    x = make_x(3, TOKENS, DIM, dtype=torch.float64).requires_grad_()
    params = parameters(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, *params: run(x, [BOTH, ONLY_B, NONE], params, backend), (x, *params), fast_mode=True
    )
