"""The CUDA kernels compiled for the host (cuda_shim.h), as one more backend for the tests that every backend runs.

``make shim`` builds it before the tests, through ``python -m support.cuda_shim``.
"""

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch.utils.cpp_extension import load

from road_kernels.ops import formula

ROOT = Path(__file__).parents[3]
CUDA = ROOT / "csrc" / "cuda"
BINDING = tuple(f"csrc/binding/{name}.cpp" for name in ("arguments", "check", "fused_arguments", "refuse", "cuda"))
FUSED = (
    "rotate_silu_mul",
    "rotate_silu_mul_backward",
    "add_rms_norm_backward",
    *(f"rotate_{op}{_}" for op in ("add_rms_norm", "rope") for _ in ("", "_")),
)
SANITIZE = os.environ.get("ROAD_SHIM_SANITIZE") == "1"
# Small tests have more threads than ROAD_MOST_SMALL, and run the 64-bit numbers of threads too; and more bytes of x
# than ROAD_TABLE_BYTES, from which on angles are made into tables.
FLAGS = [
    "-DROAD_CUDA_SHIM",
    "-DROAD_MOST_SMALL=4096",
    "-DROAD_TABLE_BYTES=4096",
    "-g0",
    "-O1",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def unavailable() -> str | None:
    return None if platform.machine() == "x86_64" else "the shim switches stacks in x86-64 assembly"


@functools.cache  # called again in a process, load() may compile again
def build() -> ModuleType:
    """The module, compiled into build/ the first time and when a source changed."""
    folder = ROOT / "build" / ("cuda_shim_sanitized" if SANITIZE else "cuda_shim")
    folder.mkdir(parents=True, exist_ok=True)
    extra = SANITIZERS if SANITIZE else []
    with without_preloading():
        return load(
            "road_cuda_shim",
            [*kernel_sources(folder), *(str(ROOT / path) for path in BINDING)],
            extra_cflags=FLAGS + extra,
            extra_ldflags=extra,
            extra_include_paths=[str(ROOT / path) for path in ("tests/support/cuda_shim", "csrc")],
            build_directory=str(folder),
        )


def kernel_sources(folder: Path) -> list[str]:
    """One C++ file per .cu, so that they compile in parallel and each on its own, as nvcc does it."""
    sources = []
    for kernels in sorted(CUDA.glob("*.cu")):
        source, code = folder / f"{kernels.stem}_kernels.cpp", f'#include "cuda/{kernels.name}"\n'
        if not source.exists() or source.read_text() != code:  # rewriting it would recompile it
            source.write_text(code)
        sources.append(str(source))
    return sources


@contextlib.contextmanager
def without_preloading() -> Iterator[None]:
    """Under the sanitizers of this process the compiler takes twice as long and three times the memory."""
    preloaded = os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        if preloaded is not None:
            os.environ["LD_PRELOAD"] = preloaded


def backend() -> SimpleNamespace:
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
        **{name: getattr(module, name) for name in FUSED},
    )


class NotYetWritten:
    """Tensors that kernels in flight have not written yet: they hold NaN, or another id, until they are waited for."""

    def __init__(self, *tensors: torch.Tensor):
        self.tensors, self.values = tensors, [t.clone() for t in tensors]
        for t in tensors:
            t.fill_(torch.nan if t.is_floating_point() else 1)
        self.written = False
        build().before_wait(self.write)

    def write(self):
        self.written = True
        for t, values in zip(self.tensors, self.values, strict=True):
            t.copy_(values)
