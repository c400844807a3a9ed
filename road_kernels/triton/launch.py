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
_runtime = triton.knobs.runtime


def kernel(function):
    """triton.jit without specialisation of its integers (annotated tl.int64): no compilation for a 1 or a multiple of
    16. What a kernel must know about strides, the launcher passes as ALIGN.
    """
    integers = [name for name, kind in inspect.get_annotations(function).items() if kind == tl.int64]
    return triton.jit(function, do_not_specialize=integers)


def _calls_something(hook) -> bool:
    """Of a profiler, which wants to see launches. Triton's own chain of hooks is there always, and mostly empty."""
    return hook is not None and bool(getattr(hook, "calls", True))


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

    def __call__(self, *tensors: torch.Tensor):
        """Launches, and returns how: a function of the device and the addresses of tensors of the same kind, that is of
        the same dtypes, and at multiples of 16 bytes where these are. None in the interpreter.
        """
        if INTERPRETED:
            self.kernel[self.grid](*tensors, *self.tail)
            return None
        addresses = [t.data_ptr() for t in tensors]
        kind = tuple([(t.dtype, address % 16 == 0) for t, address in zip(tensors, addresses, strict=True)])
        runner = self.runners.get(kind)
        if runner is None:
            runner = self.runners[kind] = self._compile(tensors)
        runner(tensors[0].get_device(), *addresses)
        return runner

    def _compile(self, tensors):
        options = self.options(hip=torch.version.hip is not None)
        with _compiling:
            compiled = self.kernel.warmup(*tensors, *self.tail, grid=self.grid, **options)
            by_triton = compiled[self.grid]  # loads it
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        get_stream, (x, y, z), tail = triton.runtime.driver.active.get_current_stream, self.grid, self.tail

        def runner(device: int, *addresses: int) -> None:
            if _calls_something(_runtime.launch_enter_hook) or _calls_something(_runtime.launch_exit_hook):
                by_triton(*addresses, *tail)
            else:  # as by_triton does, without what it prepares for hooks
                run(x, y, z, get_stream(device), function, metadata, None, None, None, *addresses, *tail)

        return runner
