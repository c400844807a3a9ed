"""RoAd in float64 from explicit 2x2 blocks in numpy: independent of python_fallback, slow, easy to check by eye.

Every result comes with its magnitude, the same sums with every term made positive. Rounding errors are bounded by a few
units of the magnitude, however much cancels in the result itself.
"""

from dataclasses import dataclass

import numpy as np


def pairs(dim: int, group_size: int) -> list[tuple[int, int]]:
    half = group_size // 2
    return [(base + k, base + k + half) for base in range(0, dim, group_size) for k in range(half)]


def param_index(variant: str, dim: int, group_size: int, feature: int) -> tuple[int, int]:
    """Positions in the flat packing of the angles behind r1 and r2 of a feature."""
    group, k = divmod(feature, group_size)
    if variant == "road_1":
        index = group * (group_size // 2) + k % (group_size // 2)
        return index, index
    if variant == "road_2":
        return feature, feature
    return group * 2 * group_size + k, group * 2 * group_size + group_size + k


def tables(theta, alpha, variant: str, dim: int, group_size: int):
    """r1 and r2 at full width, from theta and alpha of one adapter."""
    at = [param_index(variant, dim, group_size, f) for f in range(dim)]
    r1 = np.array([alpha[a] * np.cos(theta[a]) for a, _ in at])
    r2 = np.array([alpha[b] * np.sin(theta[b]) for _, b in at])
    return r1, r2


def expand(r, dim: int, group_size: int):
    """A compact table at full width."""
    if len(r) == dim:
        return np.asarray(r)
    return np.array([r[param_index("road_1", dim, group_size, f)[0]] for f in range(dim)])


def matrix(r1, r2, group_size: int):
    """R itself, [D, D]."""
    dim = len(r1)
    out = np.zeros((dim, dim))
    for i, j in pairs(dim, group_size):
        out[i, i], out[i, j] = r1[i], -r2[i]
        out[j, i], out[j, j] = r2[j], r1[j]
    return out


@dataclass
class Result:
    value: np.ndarray
    magnitude: np.ndarray


def _adapters(form, p, q, dim, group_size):
    """R of each adapter of a bank."""
    if form == "table":
        return [
            matrix(expand(a, dim, group_size), expand(b, dim, group_size), group_size)
            for a, b in zip(p, q, strict=True)
        ]
    return [matrix(*tables(a, b, form, dim, group_size), group_size) for a, b in zip(p, q, strict=True)]


def forward(x, p, q, ids, form: str, group_size: int) -> Result:
    """x: [N, D]; p, q: [A, P]; ids: [N]. float64 arrays."""
    mats = _adapters(form, p, q, x.shape[1], group_size)
    value, magnitude = x.copy(), np.zeros_like(x)
    for a, m in enumerate(mats):
        rows = ids == a
        value[rows] = x[rows] @ m.T
        magnitude[rows] = np.abs(x[rows]) @ np.abs(m).T
    return Result(value, magnitude)


def backward(gz, x, p, q, ids, form: str, group_size: int) -> tuple[Result, Result, Result]:
    """Gradients of x, p and q, where gz is the gradient of z."""
    dim = x.shape[1]
    gx = Result(gz.copy(), np.zeros_like(gz))
    gp, gq = (Result(np.zeros_like(p), np.zeros_like(p)) for _ in range(2))
    for a, m in enumerate(_adapters(form, p, q, dim, group_size)):
        rows = ids == a
        gx.value[rows] = gz[rows] @ m
        gx.magnitude[rows] = np.abs(gz[rows]) @ np.abs(m)
        gm, gm_size = gz[rows].T @ x[rows], np.abs(gz[rows]).T @ np.abs(x[rows])
        for i, j in pairs(dim, group_size):
            for f, other, sign in ((i, j, -1.0), (j, i, 1.0)):
                gr1, gr2 = gm[f, f], sign * gm[f, other]
                for target, c1, c2, at in _chain(form, p[a], q[a], dim, group_size, f):
                    into = gp if target == "p" else gq
                    into.value[a, at] += c1 * gr1 + c2 * gr2
                    into.magnitude[a, at] += abs(c1) * gm_size[f, f] + abs(c2) * gm_size[f, other]
    return gx, gp, gq


def _chain(form, p, q, dim, group_size, f):
    """(parameter, d r1 / d parameter, d r2 / d parameter, index) for every parameter of feature f."""
    if form == "table":
        at = f if len(p) == dim else param_index("road_1", dim, group_size, f)[0]
        return [("p", 1.0, 0.0, at), ("q", 0.0, 1.0, at)]
    a, b = param_index(form, dim, group_size, f)
    return [
        ("p", -q[a] * np.sin(p[a]), 0.0, a),
        ("p", 0.0, q[b] * np.cos(p[b]), b),
        ("q", np.cos(p[a]), 0.0, a),
        ("q", 0.0, np.sin(p[b]), b),
    ]
