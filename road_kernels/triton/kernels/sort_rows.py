"""The rows of a mixed batch sorted by adapter: a stable sort of the ids, by counting.

    positions [ids]        where each id is, in the order of adapters; equal ids keep their order
    starts [adapters + 1]  how many ids are smaller than 0, 1, .. adapters

An id outside the bank counts as -1, and fails a device-side assertion.
"""

import triton.language as tl

from ..launch import kernel
from .ids import adapter_of, check_ids, is_allowed


@kernel
def sort_few_kernel(
    ids,
    positions,
    starts,
    count: tl.int64,
    adapters: tl.int64,
    id_programs: tl.int64,
    MOST: tl.constexpr,
    PLACES: tl.constexpr,
    TILE: tl.constexpr,
):
    """At most MOST ids, in one launch: the position of an id is the number of smaller ids, plus that of equal ids
    before it. That many comparisons take a few microseconds of a whole GPU. Programs exchange nothing.

    The first id_programs programs write positions, the others starts. An id and its position are one number, for one
    comparison.
    """
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)[:, None]
    start_of = place - id_programs * PLACES
    is_id = place < count
    given = tl.load(ids + place, mask=is_id, other=-1).to(tl.int64)
    own = tl.where(start_of < 0, adapter_of(given, adapters) * MOST + place, start_of * MOST)
    last = (adapters + 1) * MOST  # behind all
    smaller = tl.zeros([PLACES, TILE], tl.int32)
    for start in range(0, count, TILE):
        other = start + tl.arange(0, TILE).to(tl.int64)[None, :]
        inside = other < count
        other_id = adapter_of(tl.load(ids + other, mask=inside, other=-1).to(tl.int64), adapters)
        number = tl.where(inside, other_id * MOST + other, last)
        smaller -= ((number - own) >> 63).to(tl.int32)  # by sign: 3 instructions, compared and counted 5
    rank = tl.sum(smaller, 1).to(tl.int64)[:, None]
    tl.store(positions + rank, place, mask=is_id)
    tl.store(starts + start_of, rank, mask=(start_of >= 0) & (start_of <= adapters))
    check_ids(is_allowed(given, adapters))


@kernel
def count_kernel(ids, counts, count: tl.int64, adapters: tl.int64, chunk_tiles: tl.int64, TILE: tl.constexpr):
    """Many ids, in chunks of chunk_tiles * TILE: counts[c][a + 1] += ids of chunk c that are a, from -1 on.

    These are sums of integers, which do not depend on the order.
    """
    program = tl.program_id(0)
    at = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < count
    given = tl.load(ids + at, mask=inside, other=-1).to(tl.int64)
    counters = counts + (program // chunk_tiles.to(tl.int32)) * (adapters + 1) + 1
    tl.atomic_add(counters + adapter_of(given, adapters), tl.full([TILE], 1, tl.int64), mask=inside, sem="relaxed")
    check_ids(is_allowed(given, adapters))


@kernel
def add_counts_kernel(
    counts, starts, adapters: tl.int64, chunks: tl.int64, COUNTERS: tl.constexpr, AT_ONCE: tl.constexpr
):
    """One program: turns counts into the numbers of equal ids in the chunks before, and their sums into starts.

    COUNTERS of a chunk at a time, of AT_ONCE chunks.
    """
    total = adapters * 0  # of the ids below those of a round
    for first in range(0, adapters + 1, COUNTERS):
        counter = first + tl.arange(0, COUNTERS).to(tl.int64)
        sums = tl.zeros([COUNTERS], tl.int64)
        for chunk in range(0, chunks, AT_ONCE):
            found = ()
            for k in tl.static_range(AT_ONCE):
                last = tl.where(chunk + k < chunks, adapters, -1)
                found += (tl.load(counts + (chunk + k) * (adapters + 1) + counter, mask=counter <= last, other=0),)
            for k in tl.static_range(AT_ONCE):
                last = tl.where(chunk + k < chunks, adapters, -1)
                tl.store(counts + (chunk + k) * (adapters + 1) + counter, sums, mask=counter <= last)
                sums += found[k]
        # Counter a is of adapter a - 1.
        tl.store(starts + counter, total + tl.cumsum(sums, 0), mask=counter <= adapters)
        total += tl.sum(sums, 0)


@kernel
def place_kernel(
    ids,
    counts,
    starts,
    positions,
    count: tl.int64,
    adapters: tl.int64,
    chunk: tl.int64,
    STEP: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """A program of one warp per chunk places STEP ids at a time: behind the equal ones of the chunks before, which its
    counters say and keep up to date, and behind those before them in the step, compared with AT_ONCE at a time.
    """
    program = tl.program_id(0).to(tl.int64)
    counters = counts + program * (adapters + 1) + 1
    begin = program * chunk
    for first in range(begin, tl.minimum(begin + chunk, count), STEP):
        lane = tl.arange(0, STEP)
        inside = first + lane < count  # a chunk ends with a step, but for the last one
        id = adapter_of(tl.load(ids + first + lane, mask=inside, other=-1).to(tl.int64), adapters)
        short_id = id.to(tl.int32)  # a bank of 2^31 adapters has no place in memory
        before = tl.zeros([STEP], tl.int32)
        for start in range(0, STEP, AT_ONCE):
            for k in tl.static_range(AT_ONCE):
                other = tl.load(ids + tl.minimum(first + start + k, count - 1)).to(tl.int64)
                before += ((adapter_of(other, adapters).to(tl.int32) == short_id) & (start + k < lane)).to(tl.int32)
        start_of_id = tl.load(starts + id, mask=id >= 0, other=0)
        # Not from the first cache, which need not have the additions of the step before.
        earlier = tl.load(counters + id, mask=inside, other=0, cache_modifier=".cg")
        tl.store(positions + start_of_id + earlier + before, first + lane, mask=inside)
        tl.debug_barrier()
        tl.atomic_add(counters + id, tl.full([STEP], 1, tl.int64), mask=inside, sem="relaxed")
        tl.debug_barrier()
