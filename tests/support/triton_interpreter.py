"""Triton's interpreter (TRITON_INTERPRET=1), made fit to stand for a GPU in the tests that every backend runs."""

import os

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The interpreter takes some 50 us an operation of a program. tests/backends/test_triton_kernels.py has what these are
# about.
_TOO_LONG = {
    "test_func[triton-batched": "numerical derivatives call the op a thousand times",
    "test_gradcheck": "numerical derivatives call the op a thousand times",
    "test_a_slice_of_a_packed_projection": "numerical derivatives call the op a thousand times",
    "test_sums_over_many_rows[triton-batched": "3000 rows",
    "test_repeated_runs": "1500 rows",
    "test_forward_over_runs": "2300 rows and more",
    "test_backward_over_runs": "1500 rows",
    "test_more_than_two_to_the_31_elements": "two million rows",
}


def too_long(test: str) -> str | None:
    """Why a test of every backend is left out in the interpreter, or None."""
    reasons = (reason for name, reason in _TOO_LONG.items() if test.startswith(name) and "[triton" in test)
    return next(reasons, None) if INTERPRETED else None


def mend() -> None:
    """Converts bfloat16 as GPUs do, and calls device functions without a detour.

    The interpreter (3.6 to 3.9) makes a bfloat16 by cutting off the lower half of a float32, where GPUs round to
    nearest even, and loses subnormal ones on the way back: no tolerance should have to allow for that. And it searches
    triton.language for what to patch at every call of a device function, instead of once per launch and module, which
    took nine tenths of a small kernel's time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_bfloat16(self, src, dst_type):
        types = src.dtype.scalar, dst_type.scalar
        data = np.ascontiguousarray(src.data)
        if types == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(data.copy()).to(torch.bfloat16)  # a copy: numpy's may be read-only
            return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        if types == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle((data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return cast(self, src, dst_type)

    interpreter.InterpreterBuilder.cast_impl = cast_bfloat16
    # The backend compiles without checks of 32-bit integers, which took a third of the rest.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):  # 3.6 converts arrays of one element, which NumPy 2.5 refuses
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_tensor_and_index
    launch, patched = interpreter.GridExecutor.__call__, set()

    def launch_anew(self, *args, **kwargs):
        patched.clear()  # what a launch patches it restores
        return launch(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        if (module := self.fn.__module__) not in patched:
            patched.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter.InterpretedFunction.__call__ = call
