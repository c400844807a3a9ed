"""Triton's interpreter (TRITON_INTERPRET=1), fixed up to stand in for a GPU in the tests that every backend runs."""

import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The interpreter takes about 50 us per operation of a program. tests/backends/test_triton_interpreter.py has smaller
# versions of what is skipped.
_NUMERICAL = "numerical derivatives call the op a thousand times"
_TOO_LONG = {
    "test_torch_func[triton-batched": _NUMERICAL,
    "test_sums_over_many_rows[triton-batched": "3000 rows",
    "test_repeated_runs": "1500 rows",
    "test_forward_over_runs": "2300 rows and more",
    "test_backward_over_runs": "1500 rows",
    "test_more_than_two_to_the_31_elements": "two million rows",
}


_SLOW = (  # 7 to 30 s here, below 4 s on other backends
    "test_many_adapters_and_rows",
    "test_forward_and_backward",
    "test_many_rows_are_summed_deterministically",
    "test_norm_of_long_rows",
)


def mark(item: pytest.Item) -> None:
    """Skips a test that would take minutes in the interpreter, and marks as slow one that takes long in it only."""
    if not INTERPRETED or "[triton" not in item.name:
        return
    reasons = [reason for name, reason in _TOO_LONG.items() if item.name.startswith(name)]
    if item.get_closest_marker("numerical"):
        reasons.append(_NUMERICAL)
    if item.path.name == "test_tools.py":
        item.add_marker(pytest.mark.skip(reason="Triton's interpreter needs numbers, and the tools' tensors have none"))
    for reason in reasons:
        item.add_marker(pytest.mark.skip(reason=f"too long for Triton's interpreter: {reason}"))
    if item.name.startswith(_SLOW):
        item.add_marker(pytest.mark.slow)


def mend() -> None:
    """Makes the interpreter convert bfloat16 as GPUs do, and call device functions without patching again.

    The interpreter (3.6 to 3.9) truncates a float32 to bfloat16, where GPUs round to nearest even, and loses subnormal
    numbers when it converts back; no tolerance should have to allow for that. It also searches triton.language for what
    to patch at every call of a device function, instead of once per launch and module, which took nine tenths of the
    time of a small kernel.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_bfloat16(self, src, dst_type):
        types = src.dtype.scalar, dst_type.scalar
        data = np.ascontiguousarray(src.data)
        if types == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(data.copy()).to(torch.bfloat16)  # a copy, because numpy's may be read-only
            return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        if types == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle((data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return cast(self, src, dst_type)

    interpreter.InterpreterBuilder.cast_impl = cast_bfloat16
    # Overflow checks of 32-bit integers, which our compiled kernels do without, took a third of the rest.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):  # 3.6 calls int() on arrays with one element, which NumPy 2.5 refuses
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_tensor_and_index
    launch, patched = interpreter.GridExecutor.__call__, set()

    def relaunch(self, *args, **kwargs):
        patched.clear()  # a launch undoes its patches at the end
        return launch(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        if (module := self.fn.__module__) not in patched:
            patched.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = relaunch
    interpreter.InterpretedFunction.__call__ = call
