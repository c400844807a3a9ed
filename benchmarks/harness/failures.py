"""A failure becomes a note, and its memory is released: the other cases are still worth having."""

import gc
from collections.abc import Callable

import torch

# What other people's code may end in, to be a row with its reason. Ours may only run out of memory.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def first_line(error: BaseException, silent: str | None = None) -> str:
    """Of its message; ``silent`` if it has none, by default its type."""
    return (str(error).strip().splitlines() or [type(error).__name__ if silent is None else silent])[0][:200]


def release_memory() -> None:
    """Memory of a case that is done, or that failed, to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(work: Callable[[], object], ours: bool) -> tuple[object, str | None]:
    """(what it returns, None), or (None, why it could not)."""
    try:
        return work(), None
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {first_line(error, '')}"
    except FAILURES as error:
        if ours:
            raise
        reason = f"{type(error).__name__}: {first_line(error, '')}"
    # The exception, and the tensors in its frames, are gone here.
    release_memory()
    return None, reason
