"""Which adapter a row uses."""

import triton
import triton.language as tl


@triton.jit
def load_id(ids, at, adapters):
    """The adapter of a row. An id outside the bank, which check_ids reports, counts as -1 and is never read with."""
    id = tl.load(ids + at).to(tl.int64)
    return tl.where((id >= 0) & (id < adapters), id, -1)


@triton.jit
def check_ids(ids, first, last, adapters):
    """Fails a device-side assertion if ids[first .. last] hold one outside -1 .. adapters - 1.

    Outside the loop over rows, where it would cost a barrier each; that loop masks the ids that this refuses.
    """
    for start in range(first, last + 1, 128):
        at = start + tl.arange(0, 128)
        id = tl.load(ids + at, mask=at <= last, other=-1).to(tl.int64)
        tl.device_assert((id >= -1) & (id < adapters), "road_kernels: adapter_ids holds an id outside -1 .. A-1")


@triton.jit
def spread(condition, like):
    """A scalar condition as a mask; through integers, as Triton's interpreter (3.9) breaks a broadcast bool."""
    return (tl.zeros_like(like) + condition.to(tl.int32)) != 0
