"""Tables of one width, and the matrices that the oracle makes of them: what the algebra is compared with."""

import numpy as np
import torch
from support import oracle
from support.expected import f64
from support.problems import make_params

import road_kernels as rk

DIM = 24
VARIANTS = ("road_1", "road_2", "road_4")
GROUPS = (2, 6, 24)


def make_tables(variant, adapters=None, group_size=6, seed=1, dtype=torch.float32):
    theta, alpha = make_params(variant, adapters, DIM, dtype, seed)
    return rk.road_tables(theta, alpha, variant=variant, group_size=group_size)


def full(t, group_size):
    """A table at full width, of one adapter or of a bank."""
    return np.apply_along_axis(oracle.expand, -1, f64(t), DIM, group_size)


def dense(tables, group_size):
    """The matrix [D, D], or for a bank [A, D, D]."""
    r1, r2 = (full(t, group_size) for t in tables)
    if r1.ndim == 1:
        return oracle.matrix(r1, r2, group_size)
    return np.stack([oracle.matrix(a, b, group_size) for a, b in zip(r1, r2, strict=True)])


def close(tables, matrix, group_size, tolerance=1e-6):
    assert all(t.dtype == torch.float32 for t in tables)
    np.testing.assert_allclose(dense(tables, group_size), matrix, rtol=0, atol=tolerance * max(1, abs(matrix).max()))
