"""RoAd + LoRA: the arguments of a call, and what it has to return."""

import numpy as np
import torch
from support.expected import f64
from support.problems import make_params, make_x

VARIANTS = ("road_1", "road_2", "road_4")
IN, DIM, RANK, GROUP = 24, 64, 4, 16
SCALING = 0.75


def make(variant="road_1", leading=(6, 5), dtype=torch.float32, parameters=torch.float32, bank=None):
    """h, x, theta, alpha, lora_a, lora_b."""
    h, x = make_x(*leading, DIM, dtype=dtype), make_x(*leading, IN, dtype=dtype, seed=1)
    theta, alpha = make_params(variant, bank and bank[0], DIM, dtype=parameters)
    size = (bank[1],) if bank else ()
    a, b = make_x(*size, RANK, IN, dtype=parameters, seed=2) / 5, make_x(*size, DIM, RANK, dtype=parameters, seed=3) / 2
    return h, x, theta, alpha, a, b


def products(x, a, b, ids=None, scaling=SCALING):
    """s (x A^T) B^T in float64, and its magnitude."""
    x, a, b = f64(x), f64(a), f64(b)
    if ids is None:
        return scaling * x @ a.T @ b.T, abs(scaling) * abs(x) @ abs(a).T @ abs(b).T
    scales = np.broadcast_to(f64(scaling) if isinstance(scaling, torch.Tensor) else scaling, len(a))
    value, magnitude = (np.zeros((*x.shape[:-1], b.shape[1])) for _ in range(2))
    for index in np.ndindex(*x.shape[:-1]):
        k = int(ids[index[: ids.dim()]])
        if k >= 0:
            value[index] = scales[k] * x[index] @ a[k].T @ b[k].T
            magnitude[index] = abs(scales[k]) * abs(x[index]) @ abs(a[k]).T @ abs(b[k]).T
    return value, magnitude


def assert_right(z, h, rotated, lora):
    """Three roundings in z's dtype: of the rotation, of x A^T (and of the cast factors), and of the sum."""
    assert z.dtype == h.dtype and z.shape == h.shape
    value, magnitude = rotated.value + lora[0], rotated.magnitude + lora[1]
    eps = torch.finfo(h.dtype).eps
    error = np.abs(f64(z) - value)
    assert (error <= 4 * max(eps, 1e-15) * magnitude + 1e-6 * (h.dtype == torch.float16)).all(), error.max()


def leaves_of(tensors):
    return [t.clone().requires_grad_() for t in tensors]
