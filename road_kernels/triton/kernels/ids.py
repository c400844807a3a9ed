"""Which ids are of the bank, and the assertion for those that are not."""

import triton
import triton.language as tl

from .rows import divide


@triton.jit
def adapter_of(id, adapters):
    """The adapter of an id: -1 also for an id outside the bank, which check_ids reports and nothing is read with."""
    return tl.where(id.to(tl.uint64) < adapters.to(tl.uint64), id, -1)


@triton.jit
def is_allowed(id, adapters):
    """Whether an id is one of -1 .. adapters - 1."""
    return (id + 1).to(tl.uint64) <= adapters.to(tl.uint64)


@triton.jit
def load_ids(ids, row, rows, divisor):
    """The ids of rows; behind the last row its id again, so that a program with such rows has no other adapter."""
    return tl.load(ids + divide(tl.minimum(row, rows - 1), divisor[0], divisor[1])).to(tl.int64)


@triton.jit
def load_adapters(ids, row, rows, adapters, divisor, BATCHED: tl.constexpr):
    """(the adapter of each row, -1 for none; whether its id is allowed). Adapter 0, without reading, unless BATCHED."""
    adapter = row * 0
    allowed = adapter == 0
    if BATCHED:
        given = load_ids(ids, row, rows, divisor)
        adapter, allowed = adapter_of(given, adapters), is_allowed(given, adapters)
    return adapter, allowed


@triton.jit
def check_ids(allowed):
    """Fails a device-side assertion unless all ids are allowed.

    For the end of a program, because the assertion makes its warps wait for each other.
    """
    tl.device_assert(allowed, "road_kernels: adapter_ids holds an id outside -1 .. A-1")


@triton.jit
def spread(condition, like):
    """A scalar condition as a mask; through integers, as Triton's interpreter (3.9) breaks a broadcast bool."""
    return (tl.zeros_like(like) + condition.to(tl.int32)) != 0
