"""The algebra of tables (compose, invert, transpose, identity, tables_to_road4) against dense matrices."""

import numpy as np
import pytest
import torch
from support.dense_tables import DIM, GROUPS, VARIANTS, close, dense, full, make_tables
from support.expected import f64
from support.problems import make_params, make_x

import road_kernels as rk


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("first", VARIANTS)
@pytest.mark.parametrize("then", VARIANTS)
def test_compose_is_the_product_of_the_matrices(first, then, group_size):
    a, b = make_tables(first, None, group_size, 1), make_tables(then, None, group_size, 2)
    ab = rk.compose(a, b, dim=DIM, group_size=group_size)
    close(ab, dense(b, group_size) @ dense(a, group_size), group_size)
    assert ab[0].shape[-1] == (DIM // 2 if first == then == "road_1" else DIM)


@pytest.mark.parametrize("variants", [("road_1", "road_1"), ("road_1", "road_4"), ("road_4", "road_2")])
def test_sequential_equals_composed(backend, variants):
    x = make_x(5, DIM)
    a, b = make_tables(variants[0], seed=1), make_tables(variants[1], seed=2)
    one_by_one = rk.rotate(rk.rotate(x, *a, group_size=6, backend=backend), *b, group_size=6, backend=backend)
    at_once = rk.rotate(x, *rk.compose(a, b, dim=DIM, group_size=6), group_size=6, backend=backend)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_associativity(variant):
    a, b, c = (make_tables(variant, seed=s) for s in (1, 2, 3))
    left = rk.compose(rk.compose(a, b, dim=DIM, group_size=6), c, dim=DIM, group_size=6)
    right = rk.compose(a, rk.compose(b, c, dim=DIM, group_size=6), dim=DIM, group_size=6)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_inverse_and_transpose(variant, group_size):
    tables = make_tables(variant, None, group_size)
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
    tables = tuple(scale * t for t in make_tables("road_2"))
    product = rk.compose(tables, rk.invert(tables, dim=DIM, group_size=6), dim=DIM, group_size=6)
    close(product, np.eye(DIM), 6, 2e-6)


def test_a_singular_block_is_named():
    r1, r2 = (t.clone() for t in make_tables("road_4", adapters=3))
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("adapters", [None, 3])
@pytest.mark.parametrize("group_size", GROUPS)
def test_tables_to_road4_and_back(variant, adapters, group_size):
    tables = make_tables(variant, adapters, group_size)
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
    a = tuple(t.requires_grad_() for t in make_tables("road_4", dtype=torch.float64))
    b = tuple(t.requires_grad_() for t in make_tables("road_1", adapters=2, dtype=torch.float64))
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


def test_banks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3"):
        rk.compose(make_tables("road_1", 2), make_tables("road_1", 3), dim=DIM, group_size=6)


def test_under_compile_and_vmap():
    a, b = make_tables("road_1", seed=1), make_tables("road_4", seed=2)

    def chain(a, b):
        parts = rk.combine([(a, range(3)), (b, [4, 5])], dim=DIM, group_size=6)
        return rk.compose(parts, rk.select_pairs(b, slice(2, 9), dim=DIM, group_size=6), dim=DIM, group_size=6)

    want = chain(a, b)
    torch.testing.assert_close(torch.compile(chain, fullgraph=True, backend="aot_eager")(a, b), want)
    banks = [tuple(torch.stack((t, t)) for t in tables) for tables in (a, b)]
    got = torch.vmap(chain)(*banks)
    torch.testing.assert_close(got, tuple(torch.stack((t, t)) for t in want))


def test_on_the_meta_device():
    tables = tuple(t.to("meta") for t in make_tables("road_4", adapters=3))
    for function in (rk.invert, rk.transpose, rk.tables_to_road4):
        assert function(tables, dim=DIM, group_size=6)[0].is_meta


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
        (lambda a: rk.identity(3), ValueError, "divide dim"),
        (lambda a: rk.identity("3"), TypeError, "dim must be an int"),
        (lambda a: rk.identity(4, adapters=-1), ValueError, "adapters must be 0 or more"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(make_tables("road_1"))
