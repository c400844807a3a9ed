"""select_pairs and combine: adapters on some of the pairs."""

import numpy as np
import pytest
import torch
from support.dense_tables import DIM, VARIANTS, dense, make_tables
from support.problems import make_params, make_x

import road_kernels as rk


def selections():
    mask = torch.zeros(DIM // 2, dtype=torch.bool)
    mask[2:9:3] = True
    return [slice(2, 9, 3), range(2, 9, 3), [2, 5, 8], (8, 2, 5, 5), torch.tensor([2, 5, 8]), mask]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", range(6))
def test_select_pairs(variant, which):
    tables = make_tables(variant)
    selected = rk.select_pairs(tables, selections()[which], dim=DIM, group_size=6)
    want = np.eye(DIM)
    for pair in (2, 5, 8):
        i = pair // 3 * 6 + pair % 3
        block = np.ix_([i, i + 3], [i, i + 3])
        want[block] = dense(tables, 6)[block]
    assert np.array_equal(dense(selected, 6), want)
    assert selected[0].shape == tables[0].shape


def test_select_nothing_everything_first_and_last():
    tables = make_tables("road_1")
    for pairs, kept in ((slice(0, 0), []), ([], []), (slice(None), range(12)), ([0], [0]), ([11], [11])):
        r1, r2 = rk.select_pairs(tables, pairs, dim=DIM, group_size=6)
        keep = torch.tensor([k in kept for k in range(12)])
        assert torch.equal(r1, torch.where(keep, tables[0], 1))
        assert torch.equal(r2, torch.where(keep, tables[1], 0))


def test_disjoint_selections_commute_and_combine():
    a, b = make_tables("road_1", seed=1), make_tables("road_4", seed=2)
    part_a = rk.select_pairs(a, range(0, 5), dim=DIM, group_size=6)
    part_b = rk.select_pairs(b, range(5, 11), dim=DIM, group_size=6)
    ab = rk.compose(part_a, part_b, dim=DIM, group_size=6)
    ba = rk.compose(part_b, part_a, dim=DIM, group_size=6)
    both = rk.combine([(a, range(0, 5)), (b, range(5, 11))], dim=DIM, group_size=6)
    assert torch.equal(ab[0], ba[0]) and torch.equal(ab[1], ba[1])
    assert torch.equal(ab[0], both[0]) and torch.equal(ab[1], both[1])
    np.testing.assert_array_equal(dense(both, 6), dense(part_a, 6) + dense(part_b, 6) - np.eye(DIM))


def test_combine_refuses_an_overlap():
    a = make_tables("road_1")
    with pytest.raises(ValueError, match=r"parts\[0\] and parts\[2\] share pair 4"):
        rk.combine([(a, range(0, 5)), (a, [7]), (a, [9, 4])], dim=DIM, group_size=6)
    with pytest.raises(ValueError, match="at least one"):
        rk.combine([], dim=DIM, group_size=6)


def test_one_selection_per_adapter_of_a_bank():
    a, b = make_tables("road_1", seed=1), make_tables("road_1", seed=2)
    first_half = torch.arange(12) < 6
    masks_a = torch.stack([first_half, ~first_half & first_half, first_half])  # adapters: a's half, b whole, both
    masks_b = torch.stack([~first_half & first_half, first_half | True, ~first_half])
    bank = rk.combine([(a, masks_a), (b, masks_b)], dim=DIM, group_size=6)
    half_a = rk.select_pairs(a, slice(0, 6), dim=DIM, group_size=6)
    both = rk.combine([(a, slice(0, 6)), (b, slice(6, 12))], dim=DIM, group_size=6)
    for adapter, want in enumerate((half_a, b, both)):
        assert torch.equal(bank[0][adapter], want[0]) and torch.equal(bank[1][adapter], want[1])


def test_gradients_reach_only_the_selected_pairs():
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, DIM))
    tables = rk.road_tables(theta, alpha, group_size=6)
    x = make_x(4, DIM)
    x[0] = float("inf")  # a row whose adapter uses no pair at all must not leak a NaN through 0 * inf
    bank = [rk.select_pairs(tables, p, dim=DIM, group_size=6) for p in (slice(0, 0), slice(0, 6), slice(6, 12))]
    bank = [torch.stack(t) for t in zip(*bank, strict=True)]
    rk.rotate_batched(x[1:], *bank, torch.tensor([1, -1, 1]), group_size=6).sum().backward()
    for grad in (theta.grad, alpha.grad):
        assert (grad[:6] != 0).all() and (grad[6:] == 0).all()


def test_a_selection_for_another_number_of_adapters_is_refused():
    with pytest.raises(ValueError, match="for 3 adapters, but the tables hold 2"):
        rk.select_pairs(make_tables("road_1", 2), torch.ones(3, 12).bool(), dim=DIM, group_size=6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a: rk.select_pairs(a, [12], dim=DIM, group_size=6), IndexError, r"0 \.\. 11, got 12 \.\. 12"),
        (lambda a: rk.select_pairs(a, [-1, 3], dim=DIM, group_size=6), IndexError, "got -1"),
        (lambda a: rk.select_pairs(a, slice(0, 13), dim=DIM, group_size=6), IndexError, "slice"),
        (lambda a: rk.select_pairs(a, [0.5], dim=DIM, group_size=6), TypeError, "must be integers"),
        (lambda a: rk.select_pairs(a, torch.ones(24).bool(), dim=DIM, group_size=6), ValueError, "bool mask"),
        *(
            (lambda a, bad=bad: rk.select_pairs(a, bad, dim=DIM, group_size=6), TypeError, "must be integers")
            for bad in (3, "3", None, [True], [[1]], torch.ones(2), slice(0.5, None))
        ),
        (lambda a: rk.select_pairs(a, slice(-3, None), dim=DIM, group_size=6), IndexError, "slice"),
        (lambda a: rk.combine(a, dim=DIM, group_size=6), TypeError, r"parts\[0\] must be \(tables, pairs\)"),
        (lambda a: rk.combine([a], dim=DIM, group_size=6), TypeError, r"parts\[0\] must be a pair \(r1, r2\)"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(make_tables("road_1"))
