"""Adapter.compose, interpolate and from_tables against float64: products of matrices, means of parameters."""

import numpy as np
import pytest
import torch
from support import oracle
from support.bank_cases import WIDTHS, G, make_adapter
from support.expected import f64

import road_kernels as rk
from road_kernels import Adapter

VARIANTS = ("road_1", "road_2", "road_4")
WIDEST = {(a, b): max(a, b) for a in VARIANTS for b in VARIANTS}


def matrix(adapter: Adapter, layer: str) -> np.ndarray:
    """R of a layer in float64, the identity where the adapter has none."""
    if layer not in adapter.layers:
        return np.eye(WIDTHS[layer])
    theta, alpha = (f64(t) for t in adapter.layers[layer])
    return oracle.matrix(*oracle.tables(theta, alpha, adapter.variant, WIDTHS[layer], G), G)


def without(adapter: Adapter, layer: str) -> Adapter:
    return Adapter({k: p for k, p in adapter.layers.items() if k != layer}, adapter.variant, adapter.group_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variants", [*WIDEST, ("road_1", "road_1", "road_4")], ids="-".join)
def test_a_composition_is_the_product_of_the_matrices(variants, dtype):
    parts = [make_adapter(k, variant, dtype=dtype) for k, variant in enumerate(variants, 1)]
    parts[0] = without(parts[0], "layers.1.down")
    result = Adapter.compose(parts)
    assert result.variant == ("road_1" if set(variants) == {"road_1"} else "road_4")
    assert result.widths.keys() == WIDTHS.keys() and result.group_size == G
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for layer in WIDTHS:
        assert all(t.dtype == wide for t in result.layers[layer])
        want = np.eye(WIDTHS[layer])
        for part in parts:
            want = matrix(part, layer) @ want
        # Rounded angles and scales: an ulp of an angle of up to pi, and of a length of up to 4.
        np.testing.assert_allclose(matrix(result, layer), want, rtol=0, atol=8 * torch.finfo(wide).eps)


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_tables_gives_the_tables_back(variant):
    adapter = make_adapter(3, variant)
    tables = {k: rk.road_tables(*p, variant=variant, group_size=G) for k, p in adapter.layers.items()}
    back = Adapter.from_tables(tables, WIDTHS, group_size=G)
    assert back.variant == ("road_1" if variant == "road_1" else "road_4")
    for layer in WIDTHS:
        np.testing.assert_allclose(matrix(back, layer), matrix(adapter, layer), rtol=0, atol=4e-7)
    inverse = {k: rk.invert(t, dim=WIDTHS[k], group_size=G) for k, t in tables.items()}
    inverse = Adapter.from_tables(inverse, WIDTHS, group_size=G)
    for layer, width in WIDTHS.items():
        product = matrix(inverse, layer) @ matrix(adapter, layer)
        np.testing.assert_allclose(product, np.eye(width), rtol=0, atol=4e-6)


def test_compact_and_full_tables_are_one_adapter():
    tables = {"a": (torch.ones(8), torch.zeros(8)), "b": (torch.ones(16), torch.zeros(16))}
    adapter = Adapter.from_tables(tables, {"a": 16, "b": 16}, group_size=G)
    assert adapter.variant == "road_4" and adapter.widths == {"a": 16, "b": 16}
    for theta, alpha in adapter.layers.values():  # the identity is the identity start
        assert not theta.any() and (alpha == 1).all()


@pytest.mark.parametrize("variants", WIDEST, ids="-".join)
def test_interpolation_by_hand(variants):
    """Of the parameters behind the tables: angles by a mean, scales by a product of powers."""
    a, b = (make_adapter(k, variant) for k, variant in enumerate(variants, 1))
    b = without(b, "layers.0.down")
    result = Adapter.interpolate([(a, 0.7), (b, 0.3)])
    assert result.variant == WIDEST[variants]

    def polar(adapter, layer):
        """Angles and scales behind r1 and behind r2 of each feature."""
        width = WIDTHS[layer]
        if layer not in adapter.layers:
            return np.zeros((2, width)), np.ones((2, width))
        at = np.array([oracle.param_index(adapter.variant, width, G, f) for f in range(width)]).T
        return tuple(f64(t)[at] for t in adapter.layers[layer])

    for layer in WIDTHS:
        (ta, aa), (tb, ab), (theta, alpha) = (polar(adapter, layer) for adapter in (a, b, result))
        np.testing.assert_allclose(theta, 0.7 * ta + 0.3 * tb, rtol=0, atol=1e-7)
        np.testing.assert_allclose(alpha, aa**0.7 * ab**0.3, rtol=1.2e-7)


def test_what_a_weight_means():
    a, b = make_adapter(1), make_adapter(2)

    def same(x, y, exact=False):
        return all(
            torch.equal(s, t) if exact else torch.allclose(s, t, rtol=3e-7, atol=3e-7)
            for layer in WIDTHS
            for s, t in zip(x.layers[layer], y.layers[layer], strict=True)
        )

    assert same(Adapter.interpolate([(a, 1)]), a, exact=True)
    half = Adapter.interpolate([(a, 0.5)])
    assert same(Adapter.compose([half, half]), a)
    assert same(Adapter.interpolate([(a, 1.0), (b, 1)]), Adapter.compose([a, b]))
    nothing = Adapter.interpolate([(a, 0.0)])
    assert all(not theta.any() and (alpha == 1).all() for theta, alpha in nothing.layers.values())
    assert same(Adapter.compose([a, Adapter.interpolate([(a, -1)])]), nothing)


def scaled(value, variant="road_1"):
    width = {"road_1": 8, "road_2": 16, "road_4": 32}[variant]
    alpha = torch.ones(width)
    alpha[-1] = value
    return Adapter({"q": (torch.zeros(width), alpha)}, variant, G)


A = make_adapter()
BAD = {
    "none": (lambda: Adapter.interpolate([]), ValueError, "parts must hold at least one adapter"),
    "no weight": (lambda: Adapter.interpolate([A]), TypeError, r"parts\[0\] must be \(adapter, weight\), got Adapter"),
    "no adapter": (lambda: Adapter.interpolate([("a", 1)]), TypeError, r"parts\[0\] must be an Adapter, got str"),
    "a tensor": (lambda: Adapter.interpolate([(A, torch.ones(1))]), TypeError, r"parts\[0\] must be a number"),
    "true": (lambda: Adapter.interpolate([(A, True)]), TypeError, "got bool"),
    "NaN": (
        lambda: Adapter.interpolate([(A, 1), (A, float("nan"))]),
        ValueError,
        r"parts\[1\] must be finite, got nan",
    ),
    "a zero": (lambda: Adapter.interpolate([(scaled(0), 1)]), ValueError, r"'q' of parts\[0\] has an alpha of 0"),
    "a negative": (
        lambda: Adapter.interpolate([(scaled(-2, "road_4"), 1)]),
        ValueError,
        "has an alpha of -2: scales are",
    ),
    "a NaN": (lambda: Adapter.interpolate([(scaled(float("nan")), 1)]), ValueError, "has an alpha of nan"),
    "group sizes": (
        lambda: Adapter.interpolate([(A, 1), (make_adapter(group_size=4), 1)]),
        ValueError,
        "one group_size, got 4 and 8",
    ),
    "widths": (
        lambda: Adapter.compose([A, make_adapter(widths=WIDTHS | {"layers.0.qkv": 32})]),
        ValueError,
        "layer 'layers.0.qkv' is 24 features wide, but 32 in adapter 1",
    ),
    "nothing to compose": (lambda: Adapter.compose([]), ValueError, "adapters must hold at least one adapter"),
    "no adapters": (lambda: Adapter.compose([A, None]), TypeError, r"adapters\[1\] must be an Adapter, got NoneType"),
    "no tables": (lambda: Adapter.from_tables({}, {}), ValueError, "at least one layer"),
    "no pair": (lambda: Adapter.from_tables({"q": torch.ones(8)}, {"q": 16}), TypeError, r"a pair \(r1, r2\)"),
    "no width": (
        lambda: Adapter.from_tables({"q": (torch.ones(8), torch.ones(8))}, {}),
        ValueError,
        "no width of layer 'q'",
    ),
    "no widths": (lambda: Adapter.from_tables({"q": (1, 2)}, 16), TypeError, "widths must map .* got int"),
    "another width": (
        lambda: Adapter.from_tables({"q": (torch.ones(9), torch.ones(9))}, {"q": 16}, group_size=G),
        ValueError,
        r"layer 'q': r1 of tables must be \[16\]",
    ),
    "a bank": (
        lambda: Adapter.from_tables({"q": (torch.ones(2, 8), torch.ones(2, 8))}, {"q": 16}, group_size=G),
        ValueError,
        r"layer 'q': r1 must be \[D\] or \[D/2\], one adapter, got \[2, 8\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
