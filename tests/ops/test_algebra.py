"""Tables as an algebra, against dense matrices built by the oracle."""

import numpy as np
import pytest
import torch
from support import oracle
from support.expected import f64
from support.problems import make_params, make_x

import road_kernels as rk

DIM = 24
VARIANTS = ("road_1", "road_2", "road_4")
GROUPS = (2, 6, 24)


def make(variant, adapters=None, group_size=6, seed=1, dtype=torch.float32):
    theta, alpha = make_params(variant, adapters, DIM, dtype, seed)
    return rk.road_tables(theta, alpha, variant=variant, group_size=group_size)


def full(t, group_size):
    """Of full width, for one adapter or a bank."""
    return np.apply_along_axis(oracle.expand, -1, f64(t), DIM, group_size)


def dense(tables, group_size):
    """[D, D], or [A, D, D]."""
    r1, r2 = (full(t, group_size) for t in tables)
    if r1.ndim == 1:
        return oracle.matrix(r1, r2, group_size)
    return np.stack([oracle.matrix(a, b, group_size) for a, b in zip(r1, r2, strict=True)])


def close(tables, matrix, group_size, tolerance=1e-6):
    assert all(t.dtype == torch.float32 for t in tables)
    np.testing.assert_allclose(dense(tables, group_size), matrix, rtol=0, atol=tolerance * max(1, abs(matrix).max()))


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("first", VARIANTS)
@pytest.mark.parametrize("then", VARIANTS)
def test_compose_is_the_product_of_the_matrices(first, then, group_size):
    a, b = make(first, None, group_size, 1), make(then, None, group_size, 2)
    ab = rk.compose(a, b, dim=DIM, group_size=group_size)
    close(ab, dense(b, group_size) @ dense(a, group_size), group_size)
    assert ab[0].shape[-1] == (DIM // 2 if first == then == "road_1" else DIM)


@pytest.mark.parametrize("variants", [("road_1", "road_1"), ("road_1", "road_4"), ("road_4", "road_2")])
def test_sequential_equals_composed(backend, variants):
    x = make_x(5, DIM)
    a, b = make(variants[0], seed=1), make(variants[1], seed=2)
    one_by_one = rk.rotate(rk.rotate(x, *a, group_size=6, backend=backend), *b, group_size=6, backend=backend)
    at_once = rk.rotate(x, *rk.compose(a, b, dim=DIM, group_size=6), group_size=6, backend=backend)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_associativity(variant):
    a, b, c = (make(variant, seed=s) for s in (1, 2, 3))
    left = rk.compose(rk.compose(a, b, dim=DIM, group_size=6), c, dim=DIM, group_size=6)
    right = rk.compose(a, rk.compose(b, c, dim=DIM, group_size=6), dim=DIM, group_size=6)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_inverse_and_transpose(variant, group_size):
    tables = make(variant, None, group_size)
    matrix = dense(tables, group_size)
    inverse = rk.invert(tables, dim=DIM, group_size=group_size)
    transposed = rk.transpose(tables, dim=DIM, group_size=group_size)
    close(inverse, np.linalg.inv(matrix), group_size)
    close(transposed, matrix.T, group_size)
    assert inverse[0].shape == transposed[0].shape == tables[0].shape
    for product in (
        rk.compose(tables, inverse, dim=DIM, group_size=group_size),
        rk.compose(inverse, tables, dim=DIM, group_size=group_size),
    ):
        close(product, np.eye(DIM), group_size, 2e-6)


def test_at_alpha_1_the_transpose_is_the_inverse():
    theta, _ = make_params("road_1", 3, DIM)
    tables = rk.road_tables(theta, torch.ones_like(theta), group_size=6)
    product = rk.compose(tables, rk.transpose(tables, dim=DIM, group_size=6), dim=DIM, group_size=6)
    close(product, np.stack([np.eye(DIM)] * 3), 6, 3e-7)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_inverse_of_scales_whose_square_no_float32_holds(scale):
    tables = tuple(scale * t for t in make("road_2"))
    product = rk.compose(tables, rk.invert(tables, dim=DIM, group_size=6), dim=DIM, group_size=6)
    close(product, np.eye(DIM), 6, 2e-6)


def test_a_singular_block_is_named():
    r1, r2 = (t.clone() for t in make("road_4", adapters=3))
    r1[2, 7], r2[2, 7] = -2 * r2[2, 10], 2 * r1[2, 10]  # features 7 and 10 of adapter 2: parallel rows
    with pytest.raises(ValueError, match=r"invert cannot invert the block of features \(7, 10\) of adapter 2: .* is"):
        rk.invert((r1, r2), dim=DIM, group_size=6)
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match=r"features \(0, 3\): its determinant is"):
            rk.invert((torch.full((12,), bad), torch.zeros(12)), dim=DIM, group_size=6)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("adapters", [None, 3])
def test_identity_changes_nothing(backend, compact, adapters):
    x = make_x(3, DIM, dtype=torch.bfloat16)
    tables = rk.identity(DIM, adapters=adapters, compact=compact)
    if adapters is None:
        z = rk.rotate(x, *tables, group_size=6, backend=backend)
    else:
        z = rk.rotate_batched(x, *tables, torch.tensor([0, 2, 1]), group_size=6, backend=backend)
    assert torch.equal(z, x)


def selections():
    mask = torch.zeros(DIM // 2, dtype=torch.bool)
    mask[2:9:3] = True
    return [slice(2, 9, 3), range(2, 9, 3), [2, 5, 8], (8, 2, 5, 5), torch.tensor([2, 5, 8]), mask]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", range(6))
def test_select_pairs(variant, which):
    tables = make(variant)
    selected = rk.select_pairs(tables, selections()[which], dim=DIM, group_size=6)
    want = np.eye(DIM)
    for pair in (2, 5, 8):
        i = pair // 3 * 6 + pair % 3
        block = np.ix_([i, i + 3], [i, i + 3])
        want[block] = dense(tables, 6)[block]
    assert np.array_equal(dense(selected, 6), want)
    assert selected[0].shape == tables[0].shape


def test_select_nothing_everything_first_and_last():
    tables = make("road_1")
    for pairs, kept in ((slice(0, 0), []), ([], []), (slice(None), range(12)), ([0], [0]), ([11], [11])):
        r1, r2 = rk.select_pairs(tables, pairs, dim=DIM, group_size=6)
        keep = torch.tensor([k in kept for k in range(12)])
        assert torch.equal(r1, torch.where(keep, tables[0], 1))
        assert torch.equal(r2, torch.where(keep, tables[1], 0))


def test_disjoint_selections_commute_and_combine():
    a, b = make("road_1", seed=1), make("road_4", seed=2)
    part_a = rk.select_pairs(a, range(0, 5), dim=DIM, group_size=6)
    part_b = rk.select_pairs(b, range(5, 11), dim=DIM, group_size=6)
    ab = rk.compose(part_a, part_b, dim=DIM, group_size=6)
    ba = rk.compose(part_b, part_a, dim=DIM, group_size=6)
    both = rk.combine([(a, range(0, 5)), (b, range(5, 11))], dim=DIM, group_size=6)
    assert torch.equal(ab[0], ba[0]) and torch.equal(ab[1], ba[1])
    assert torch.equal(ab[0], both[0]) and torch.equal(ab[1], both[1])
    np.testing.assert_array_equal(dense(both, 6), dense(part_a, 6) + dense(part_b, 6) - np.eye(DIM))


def test_combine_refuses_an_overlap():
    a = make("road_1")
    with pytest.raises(ValueError, match=r"parts\[0\] and parts\[2\] share pair 4"):
        rk.combine([(a, range(0, 5)), (a, [7]), (a, [9, 4])], dim=DIM, group_size=6)
    with pytest.raises(ValueError, match="at least one"):
        rk.combine([], dim=DIM, group_size=6)


def test_one_selection_per_adapter_of_a_bank():
    a, b = make("road_1", seed=1), make("road_1", seed=2)
    first_half = torch.arange(12) < 6
    masks_a = torch.stack([first_half, ~first_half & first_half, first_half])  # adapters: a's half, b whole, both
    masks_b = torch.stack([~first_half & first_half, first_half | True, ~first_half])
    bank = rk.combine([(a, masks_a), (b, masks_b)], dim=DIM, group_size=6)
    half_a = rk.select_pairs(a, slice(0, 6), dim=DIM, group_size=6)
    both = rk.combine([(a, slice(0, 6)), (b, slice(6, 12))], dim=DIM, group_size=6)
    for adapter, want in enumerate((half_a, b, both)):
        assert torch.equal(bank[0][adapter], want[0]) and torch.equal(bank[1][adapter], want[1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("adapters", [None, 3])
@pytest.mark.parametrize("group_size", GROUPS)
def test_tables_to_road4_and_back(variant, adapters, group_size):
    tables = make(variant, adapters, group_size)
    theta, alpha = rk.tables_to_road4(tables, dim=DIM, group_size=group_size)
    assert theta.shape[-1] == alpha.shape[-1] == 2 * DIM
    back = rk.road_tables(theta, alpha, variant="road_4", group_size=group_size)
    want = [full(t, group_size) for t in tables]
    length = np.hypot(*want)
    for got, w in zip(back, want, strict=True):
        assert (abs(f64(got) - w) <= 4e-7 * length).all()


def test_tables_to_road4_of_the_identity_is_the_identity_start():
    theta, alpha = rk.tables_to_road4(rk.identity(DIM), dim=DIM, group_size=6)
    assert torch.equal(theta, torch.zeros(2 * DIM)) and torch.equal(alpha, torch.ones(2 * DIM))


def test_every_function_is_differentiable():
    a = tuple(t.requires_grad_() for t in make("road_4", dtype=torch.float64))
    b = tuple(t.requires_grad_() for t in make("road_1", adapters=2, dtype=torch.float64))
    options = {"dim": DIM, "group_size": 6}
    for function in (
        lambda a1, a2, b1, b2: rk.compose((a1, a2), (b1, b2), **options),
        lambda a1, a2, b1, b2: rk.transpose((a1, a2), **options) + rk.transpose((b1, b2), **options),
        lambda a1, a2, b1, b2: rk.invert((a1, a2), **options) + rk.invert((b1, b2), **options),
        lambda a1, a2, b1, b2: rk.select_pairs((a1, a2), range(3, 7), **options),
        lambda a1, a2, b1, b2: rk.combine([((a1, a2), range(3)), ((b1, b2), range(3, 9))], **options),
        lambda a1, a2, b1, b2: rk.tables_to_road4((a1, a2), **options) + rk.tables_to_road4((b1, b2), **options),
    ):
        assert torch.autograd.gradcheck(function, (*a, *b), fast_mode=True)


def test_a_zero_block_has_finite_gradients():
    tables = tuple(torch.zeros(DIM, requires_grad=True) for _ in "12")
    theta, alpha = rk.tables_to_road4(tables, dim=DIM, group_size=6)
    (theta.sum() + alpha.sum()).backward()
    assert all(t.grad.isfinite().all() for t in tables) and not theta.any() and not alpha.any()


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


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a: rk.compose(a, a, dim=DIM, group_size=5), ValueError, "group_size must be even"),
        (lambda a: rk.compose(a, a, dim=DIM, group_size=64), ValueError, r"divide dim \(24\), got 64"),
        (lambda a: rk.compose(a, a[0], dim=DIM, group_size=6), TypeError, r"then must be a pair \(r1, r2\)"),
        (lambda a: rk.compose(a, (a[0], a[1].int()), dim=DIM, group_size=6), TypeError, "r2 of then must be float16"),
        (lambda a: rk.compose(a, (a[0], a[1][:6]), dim=DIM, group_size=6), ValueError, "r2 of then must be"),
        (lambda a: rk.invert((torch.ones(24), a[1]), dim=DIM, group_size=6), ValueError, "must have one shape"),
        (lambda a: rk.transpose(a, dim=96, group_size=6), ValueError, r"r1 of tables must be \[96\], \[48\]"),
        (lambda a: rk.transpose(a, dim="24"), TypeError, "dim must be an int"),
        (lambda a: rk.transpose([t.to("meta") for t in a[:1]] + [a[1]], dim=DIM, group_size=6), ValueError, "device"),
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
        (lambda a: rk.identity(3), ValueError, "divide dim"),
        (lambda a: rk.identity("3"), TypeError, "dim must be an int"),
        (lambda a: rk.identity(4, adapters=-1), ValueError, "adapters must be 0 or more"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(make("road_1"))


def test_banks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3"):
        rk.compose(make("road_1", 2), make("road_1", 3), dim=DIM, group_size=6)
    with pytest.raises(ValueError, match="for 3 adapters, but the tables hold 2"):
        rk.select_pairs(make("road_1", 2), torch.ones(3, 12).bool(), dim=DIM, group_size=6)


def test_under_compile_and_vmap():
    a, b = make("road_1", seed=1), make("road_4", seed=2)

    def chain(a, b):
        parts = rk.combine([(a, range(3)), (b, [4, 5])], dim=DIM, group_size=6)
        return rk.compose(parts, rk.select_pairs(b, slice(2, 9), dim=DIM, group_size=6), dim=DIM, group_size=6)

    want = chain(a, b)
    torch.testing.assert_close(torch.compile(chain, fullgraph=True, backend="aot_eager")(a, b), want)
    banks = [tuple(torch.stack((t, t)) for t in tables) for tables in (a, b)]
    got = torch.vmap(chain)(*banks)
    torch.testing.assert_close(got, tuple(torch.stack((t, t)) for t in want))


def test_on_the_meta_device():
    tables = tuple(t.to("meta") for t in make("road_4", adapters=3))
    for function in (rk.invert, rk.transpose, rk.tables_to_road4):
        assert function(tables, dim=DIM, group_size=6)[0].is_meta
