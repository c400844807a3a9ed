"""What docs/distributed.md and docs/serving.md say about splitting and concatenating parameters, for every variant."""

import pytest
import torch
from support.problems import make_params, make_x, param_width

import road_kernels as rk

VARIANTS = ("road_1", "road_2", "road_4")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", [2, 12])
def test_features_split_at_groups(backend, variant, group_size):
    """Column-parallel: features [a, b) of the result need the same fraction of theta and alpha, or of the tables."""
    dim, kw = 48, {"group_size": group_size, "backend": backend}
    x, (theta, alpha) = make_x(5, dim), make_params(variant, None, dim)
    r1, r2 = rk.road_tables(theta, alpha, variant=variant, group_size=group_size)
    ids = torch.zeros(5, dtype=torch.int64)
    whole = rk.road_apply(x, theta, alpha, variant=variant, **kw)
    for a, b in ((0, 12), (12, 24), (24, 48)):
        part = slice(param_width(variant, dim) * a // dim, param_width(variant, dim) * b // dim)
        got = rk.road_apply(x[:, a:b], theta[part], alpha[part], variant=variant, **kw)
        torch.testing.assert_close(got, whole[:, a:b], rtol=1e-6, atol=1e-6)
        part = slice(r1.shape[0] * a // dim, r1.shape[0] * b // dim)
        for got in (
            rk.rotate(x[:, a:b], r1[part], r2[part], **kw),
            rk.rotate_batched(x[:, a:b], r1[None, part], r2[None, part], ids, **kw),
        ):
            torch.testing.assert_close(got, whole[:, a:b], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_layers_take_concatenated_parameters(backend, variant):
    """A part with theta = 0 and alpha = 1 passes through bit for bit, in every variant."""
    widths, kw = (24, 12, 36), {"variant": variant, "group_size": 12, "backend": backend}
    x = make_x(5, sum(widths))
    pairs = [make_params(variant, None, width, seed=width) for width in widths]
    pairs[1] = torch.zeros_like(pairs[1][0]), torch.ones_like(pairs[1][1])
    theta, alpha = map(torch.cat, zip(*pairs, strict=True))
    packed = rk.road_apply(x, theta, alpha, **kw).split(widths, dim=-1)
    y = x.clone()
    for columns, pair, want in zip(y.split(widths, dim=-1), pairs, packed, strict=True):
        rk.road_apply(columns, *pair, inplace=True, **kw)
        torch.testing.assert_close(columns, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(packed[1], x[:, 24:36])
    full = rk.road_tables(theta, alpha, variant=variant, group_size=12)
    joined = [rk.road_tables(*pair, variant=variant, group_size=12) for pair in pairs]
    for k in (0, 1):
        assert torch.equal(full[k], torch.cat([tables[k] for tables in joined]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_partial_sums(backend, variant):
    """Row-parallel: R (sum h_k + b) is the sum of R h_k and of R b, and is not (sum R h_k) + b."""
    parts, bias = make_x(4, 5, 24), make_x(24, seed=9)
    theta, alpha = make_params(variant, None, 24)

    def rotate(h):
        return rk.road_apply(h, theta, alpha, variant=variant, group_size=8, backend=backend)

    want = rotate(parts.sum(0) + bias)
    torch.testing.assert_close(rotate(parts).sum(0) + rotate(bias), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(rotate(parts).sum(0) + bias, want, atol=1e-1)
