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


def fused(op, adapter_ids, backend):
    x, bank = torch.ones(4, 64, device="cuda"), torch.ones(2, 3, 32, device="cuda")
    if op == "silu_mul":
        rk.rotate_silu_mul(x, *bank, adapter_ids, group_size=32, backend=backend)
    else:
        rk.rotate_add_rms_norm(x, x.clone(), x[0].clone(), *bank, adapter_ids, inplace=True, backend=backend)


def rope(position, backend, inplace=False, is_neox=True, adapter_id=0):
    qkv, tables = torch.ones(4, 192, device="cuda"), torch.ones(2, 3, 96, device="cuda")
    cache = torch.ones(7, 64, device="cuda")
    heads = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 64, "group_size": 32}
    rk.rotate_rope(
        *(qkv, ids(0, 6, position, 1), cache, *tables, ids(0, -1, adapter_id, 1)),
        **heads,
        is_neox=is_neox,
        inplace=inplace,
        backend=backend,
    )


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
    "silu_mul": lambda b: fused("silu_mul", ids(0, 3, -1, 1), b),
    "silu_mul, beyond int32": lambda b: fused("silu_mul", ids(0, 2**32, -1, 1), b),
    "add_rms_norm": lambda b: fused("add_rms_norm", ids(0, -2, -1, 1), b),
    "rope": lambda b: rope(0, b, adapter_id=3),
    "position one too many": lambda b: rope(7, b),
    "position below 0, in place": lambda b: rope(-1, b, inplace=True),
    "position beyond int32": lambda b: rope(2**32, b),
    "position of any pairs": lambda b: rope(7, b, is_neox=False),
    "zero alpha in place": lambda b: singular("road_1", without(32, 7), b),
    "singular block in place": lambda b: singular("road_4", without(128, 3), b),
}

if __name__ == "__main__":
    CASES[sys.argv[1]](sys.argv[2])
    torch.cuda.synchronize()
    print("no assertion came")
