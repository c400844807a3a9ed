"""The CUDA kernels on the host (cuda_shim.h), as one more backend for the tests that every backend runs."""

import functools
import os
import platform
from pathlib import Path
from types import SimpleNamespace

from torch.utils.cpp_extension import load

from road_kernels.ops import formula

ROOT = Path(__file__).parents[3]
SANITIZE = os.environ.get("ROAD_SHIM_SANITIZE") == "1"
# Small tests have more threads than ROAD_MOST_SMALL: they run the 64-bit row numbers too.
FLAGS = ["-DROAD_CUDA_SHIM", "-DROAD_MOST_SMALL=4096", "-g0", "-O1", "-Wno-psabi", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def unavailable() -> str | None:
    return None if platform.machine() == "x86_64" else "the shim switches stacks in x86-64 assembly"


@functools.cache  # called again in a process, load() may compile again
def build():
    """The module, compiled into build/ the first time and when a source changed."""
    folder = ROOT / "build" / ("cuda_shim_sanitized" if SANITIZE else "cuda_shim")
    folder.mkdir(parents=True, exist_ok=True)
    extra = SANITIZERS if SANITIZE else []
    return load(
        "road_cuda_shim",
        [
            str(ROOT / path)
            for path in (
                "tests/support/cuda_shim/kernels.cpp",
                "csrc/binding/cuda.cpp",
                "csrc/binding/arguments.cpp",
                "csrc/binding/check.cpp",
            )
        ],
        extra_cflags=FLAGS + extra,
        extra_ldflags=extra,
        extra_include_paths=[str(ROOT / path) for path in ("tests/support/cuda_shim", "csrc")],
        build_directory=str(folder),
    )


def backend():
    module = build()

    def rotate_(x, p, q, adapter_ids, form, group_size, check_invertible, overlap=False):
        if check_invertible:
            # The error that the tests of all backends expect; the kernel's own is in test_cuda_shim.py.
            formula.check_invertible_blocks(x, p, q, adapter_ids, form, group_size)
        module.rotate_(x, p, q, adapter_ids, form, group_size, check_invertible, overlap)

    return SimpleNamespace(
        __name__="tests.cuda_shim",
        DEVICES=("cpu",),
        rotate=module.rotate,
        rotate_=rotate_,
        rotate_backward=module.rotate_backward,
        merge=module.merge,
        merge_=module.merge_,
        tables=module.tables,
    )
