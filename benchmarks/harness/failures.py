"""A failure becomes a note and releases its memory, so that the other cases are still measured."""

import gc
from collections.abc import Callable

import torch

# Errors of third-party code that become a row with the reason. Ours may only run out of memory.
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
    """The first line of its message; without one, ``silent`` or else the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__ if silent is None else silent])[0][:200]


def release_memory() -> None:
    """Returns the memory of a case that is done, or that failed, to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(work: Callable[[], object], ours: bool) -> tuple[object, str | None]:
    """(what ``work`` returns, None), or (None, why it failed)."""
    try:
        return work(), None
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {first_line(error, '')}"
    except FAILURES as error:
        if ours:
            raise
        reason = f"{type(error).__name__}: {first_line(error, '')}"
    # Out of the except block: the exception, and the tensors that its frames hold, are gone.
    release_memory()
    return None, reason
