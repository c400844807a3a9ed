"""Launches of compiled kernels without the work that Triton's own launcher repeats.

Triton binds, specialises and looks up the arguments of every call. Here a Launch is prepared once for all calls of the
same shapes and strides on a device (prepare.py caches it) and has its compiled kernels; per call only the dtypes of the
tensors and the alignment of their pointers, which kernels are compiled for, are looked at.
"""

import inspect
import threading

import torch
import triton
import triton.language as tl

# Then jit functions run in Triton's interpreter, on CPU tensors too (TRITON_INTERPRET=1 when they were defined).
INTERPRETED = triton.knobs.runtime.interpret
# Fused multiply-adds are explicit where bits depend on them; elsewhere they are only faster.
_OPTIONS = {"enable_fp_fusion": True, "sanitize_overflow": False}
# Triton loads a kernel in several steps; another thread (autograd has one per device) must not see it half loaded.
_compiling = threading.Lock()


def kernel(function):
    """triton.jit without specialisation of its integers (annotated tl.int64): no compilation for a 1 or a multiple of
    16. What a kernel must know about strides, the launcher passes as ALIGN.
    """
    integers = [name for name, kind in inspect.get_annotations(function).items() if kind == tl.int64]
    return triton.jit(function, do_not_specialize=integers)


class Launch:
    """A kernel with its grid, integers and constants, ready for tensors."""

    __slots__ = ("asserts", "grid", "kernel", "num_warps", "registers", "runners", "tail")

    def __init__(
        self,
        kernel,
        grid,
        integers: tuple,
        constants: tuple,
        num_warps: int,
        asserts: bool = False,
        registers: int | None = None,
    ):
        """integers, constants: in the order of the kernel's arguments, after its tensors.

        asserts: keeps tl.device_assert. registers: the limit of a lane on an NVIDIA GPU; by default ptxas chooses, and
        spills a few rather than lose a program per multiprocessor.
        """
        self.kernel, self.grid, self.num_warps = kernel, grid, num_warps
        self.asserts, self.registers = asserts, registers
        self.tail = (*integers, *constants)
        self.runners = {}

    def options(self, hip: bool) -> dict:
        """For Triton's compiler."""
        limit = {"maxnreg": self.registers} if self.registers and not hip else {}
        return {"num_warps": self.num_warps, "debug": self.asserts, **_OPTIONS, **limit}

    def __call__(self, *tensors: torch.Tensor) -> None:
        if INTERPRETED:
            self.kernel[self.grid](*tensors, *self.tail)
            return
        kind = tuple([(t.dtype, t.data_ptr() % 16 == 0) for t in tensors])
        runner = self.runners.get(kind)
        if runner is None:
            runner = self.runners[kind] = self._compile(tensors)
        runner(*tensors, *self.tail)

    def _compile(self, tensors):
        options = self.options(hip=torch.version.hip is not None)
        with _compiling:
            return self.kernel.warmup(*tensors, *self.tail, grid=self.grid, **options)[self.grid]
