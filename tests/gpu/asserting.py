"""One call that must end in a device-side assertion: python asserting.py CASE BACKEND.

The exit status is 0 only if the assertion did not fail. Tables and ids are allocations of their own, so that a memory
checker sees every read outside of them.
"""

import sys

import torch

import road_kernels as rk
from road_kernels.backends import registry


def ids(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype, device="cuda")


def road(adapter_ids, inplace=False, backward=False, backend=None):
    x, theta, alpha = (torch.ones(shape, device="cuda") for shape in ((4, 64), (3, 32), (3, 32)))
    if not backward:
        return rk.road_apply_batched(x, theta, alpha, adapter_ids, inplace=inplace, backend=backend)
    module = registry._loaded[backend][0]
    return module.rotate_backward(x, x, theta, alpha, adapter_ids, "road_1", 64, False, [True, True, True])


def singular(variant, alpha, backend):
    x, theta = torch.ones(2, 64, device="cuda"), torch.zeros(len(alpha), device="cuda").requires_grad_()
    rk.road_apply(x, theta, alpha.cuda().requires_grad_(), variant=variant, inplace=True, backend=backend)


def without(n, k):
    alpha = torch.ones(n)
    alpha[k] = 0
    return alpha


CASES = {
    "one too many": lambda b: road(ids(0, 3, -1, 1), backend=b),
    "below -1": lambda b: road(ids(0, -2, -1, 1), backend=b),
    "in place": lambda b: road(ids(0, 3, -1, 1, dtype=torch.int32), inplace=True, backend=b),
    "beyond int32": lambda b: road(ids(0, 2**32, 0, 0), backend=b),
    "backward": lambda b: road(ids(0, 1, -1, 3), backward=True, backend=b),
    "backward, far below": lambda b: road(ids(0, 1, -(2**31), 1), backward=True, backend=b),
    "empty bank": lambda b: rk.road_apply_batched(
        torch.ones(1, 64, device="cuda"), *torch.ones(2, 0, 32, device="cuda"), ids(0), backend=b
    ),
    "zero alpha in place": lambda b: singular("road_1", without(32, 7), b),
    "singular block in place": lambda b: singular("road_4", without(128, 3), b),
}

if __name__ == "__main__":
    CASES[sys.argv[1]](sys.argv[2])
    torch.cuda.synchronize()
    print("no assertion came")
