"""Runs every kernel on small shapes for compute-sanitizer. Compares nothing, which the tests do.

PYTHONPATH=tests python tests/gpu/sanitized.py [BACKEND] [--few]
"""

import argparse

import fused_work
import torch
from gpu_work import WORK, make_work
from support.backends import DEVICE
from support.problems import DTYPES, FORMS, make_params, make_x

from road_kernels.backends import registry

ROWS, DIM = 37, 64


def unaligned(t: torch.Tensor) -> torch.Tensor:
    """The same numbers one element past an aligned address, which rules out vector loads."""
    return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", nargs="?", default="cuda")
    parser.add_argument("--few", action="store_true", help="two dtypes and forms: a backend that compiles each")
    options = parser.parse_args()
    torch.set_default_device(DEVICE)
    if options.backend == "cuda_shim":
        from support import cuda_shim

        registry._loaded["cuda_shim"] = cuda_shim.backend(), None
    dtypes, forms = (DTYPES[1:3], FORMS[:4:2]) if options.few else (DTYPES, FORMS)
    calls = 0
    for dtype in dtypes:
        for form in forms:
            for group_size in (2, 16):
                for name in WORK:
                    work = make_work(name, options.backend, form, ROWS, DIM, group_size, dtype)
                    work()
                    work.x, work.gz = unaligned(work.x), unaligned(work.gz)
                    work()
                    calls += 2
        if dtype == torch.bfloat16:
            # More ids than a block sorts; on a full GPU, more than the 256 rows that a block stages at a time.
            for rows, dim in ((1500, DIM), (1 << 19 if DEVICE == "cuda" else 5000, 16)):
                for name in WORK:
                    make_work(name, options.backend, "road_4", rows, dim, 16, dtype)()
                    calls += 1
        for form in ("table", "table_half"):
            for group_size in (2, 8, 64):
                for name in fused_work.WORK:
                    work = fused_work.make_fused(name, options.backend, form, ROWS, group_size, dtype)
                    work()
                    work.case.x, work.gz = unaligned(work.case.x), unaligned(work.gz)
                    work()
                    calls += 2
        backend = registry._loaded[options.backend][0]
        ids, x = torch.tensor([1, -1, 0] * 5), make_x(15, DIM, dtype=dtype)
        for form in ("table", "table_half"):
            for columns in (40, 17):
                backend.merge(make_x(DIM, columns, dtype=dtype), *make_params(form, None, DIM), 16)
            backend.rotate(x, *make_params(form, 3, DIM), ids, "table", 16, True)  # overlapping
            calls += 3
        for form in ("road_1", "road_2", "road_4"):
            backend.tables(*make_params(form, 3, DIM), form, 16, torch.promote_types(dtype, torch.float32))
            calls += 1
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} calls of {options.backend} on {DEVICE}")


if __name__ == "__main__":
    main()
