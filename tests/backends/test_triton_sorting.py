"""The Triton kernels that sort rows by adapter, in Triton's interpreter."""

import dataclasses

import pytest
import torch
from support.triton_interpreter import INTERPRETED

pytestmark = [
    pytest.mark.backend("triton"),
    pytest.mark.cpu_only,
    pytest.mark.skipif(not INTERPRETED, reason="needs a process of its own with TRITON_INTERPRET=1"),
]

ORDERED = {
    "one id": [2],
    "none": [],
    "all the same": [1] * 11,
    "all different, descending": list(range(30, -1, -1)),
    "first, last and none in turn": [0, -1, 30, 0, 30, -1, -1],
    "one fewer than a program places": [3, 1, 2, 3, -1, 0, 1],
    "as many as a program places": [3, 1, 2, 3, -1, 0, 1, 2],
    "one more": [3, 1, 2, 3, -1, 0, 1, 2, 0],
    "one fewer than a tile": [(7 * k) % 32 - 1 for k in range(511)],
    "a tile": [(7 * k) % 32 - 1 for k in range(512)],
    "one more than a tile": [(7 * k) % 32 - 1 for k in range(513)],
    "the most that are compared": [(7 * k * k) % 32 - 1 for k in range(4096)],
    "one more id": [(7 * k * k) % 32 - 1 for k in range(4097)],
}


def check_order(ids, adapters):
    from road_kernels.triton import ops

    positions, starts = ops.sort_rows(ids, adapters)
    want, want_positions = torch.sort(ids.long(), stable=True)
    assert torch.equal(positions, want_positions)
    assert torch.equal(starts, torch.searchsorted(want, torch.arange(adapters + 1)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("ids", ORDERED.values(), ids=ORDERED)
def test_ordering_is_a_stable_sort(ids, dtype):
    check_order(torch.tensor(ids, dtype=dtype), 31)


@pytest.mark.parametrize("adapters", [1, 7, 8, 100])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 200, 777])
@pytest.mark.parametrize("most_chunks", [1, 5])
def test_ordering_many_ids(constants, count, adapters, most_chunks):
    """Several steps of a chunk, several chunks, more chunks than are added at once, several rounds of adapters."""
    constants(MOST_COMPARED=0, STEP=32, CHUNK_STEPS=2, MOST_CHUNKS=most_chunks, COUNTERS=8, AT_ONCE=2, COMPARED=16)
    generator = torch.Generator().manual_seed(count)
    check_order(torch.randint(-1, adapters, (count,), generator=generator), adapters)
    check_order(torch.full((count,), adapters - 1), adapters)
    check_order(torch.full((count,), -1, dtype=torch.int32), adapters)


def test_more_adapters_leave_fewer_chunks(constants):
    constants(MOST_COMPARED=0, STEP=32, CHUNK_STEPS=1, MOST_COUNTERS=2 * 301, AT_ONCE=4)
    check_order(torch.arange(200) * 7 % 300, 300)


@pytest.mark.parametrize("most_compared", [4096, 0], ids=["few", "many"])
@pytest.mark.parametrize("bad", [4, -2, 2**32, -(2**63), 2**63 - 1])
def test_sorting_asserts_that_ids_are_in_the_bank(constants, monkeypatch, bad, most_compared):
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    from road_kernels.triton import ops

    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, debug=True))
    constants(MOST_COMPARED=most_compared)
    ops.sort_rows(torch.tensor([3, 0, -1]), 4)
    with pytest.raises(InterpreterError, match="holds an id outside"):
        ops.sort_rows(torch.tensor([3, 0, bad, -1]), 4)


@pytest.mark.parametrize("most_compared", [4096, 0], ids=["few", "many"])
def test_ids_outside_the_bank_count_as_pass_through(constants, most_compared):
    """The assertion, which is left out here, stops a program after its writes; they are within bounds."""
    from road_kernels.triton import ops

    constants(MOST_COMPARED=most_compared)
    far = torch.iinfo(torch.int64)
    positions, starts = ops.sort_rows(torch.tensor([3, far.max, 0, far.min, -1, 4, 3, -2, 1]), 4)
    assert positions.tolist() == [1, 3, 4, 5, 7, 2, 8, 0, 6]
    assert starts.tolist() == [5, 6, 7, 7, 9]
