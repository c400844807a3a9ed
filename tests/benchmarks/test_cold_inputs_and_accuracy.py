"""How many copies of the inputs there are, and the error by which wrong results are refused."""

import pytest
import torch

from benchmarks.harness.accuracy import rounding, row_error
from benchmarks.harness.cold_inputs import Inputs, copied, held_bytes, sets_needed


@pytest.mark.parametrize(
    ("touched", "held", "sets"),
    [
        (100, 100, 10),  # a thousand bytes of working set
        (101, 101, 10),  # rounded up
        (1, 1, 256),  # tiny: the bound
        (100, 4000, 2),  # a large bank: the memory
        (5000, 20000, 1),
    ],
)
def test_sets_needed(touched, held, sets):
    assert sets_needed(touched, held, working_set=1000, memory=8000) == sets


def test_copies_are_of_their_own_memory_and_keep_what_asks_for_gradients():
    inputs = Inputs(x=torch.ones(2, requires_grad=True), ids=[1, 2], y=torch.ones(3))
    other = copied(inputs)
    assert other.x.requires_grad and other.x.is_leaf and other.ids is inputs.ids
    assert other.x.data_ptr() != inputs.x.data_ptr() and other.y.data_ptr() != inputs.y.data_ptr()
    assert held_bytes(inputs) == 20


def test_error_is_that_of_the_worst_row():
    want = torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]])
    got = want.clone()
    got[0, 0] += 0.5
    assert row_error(got, want) == pytest.approx(0.1)
    got = want.clone()
    got[1, 1] = 5.0  # a row of zeros counts against the largest row
    assert row_error(got, want) == pytest.approx(0.1)
    assert row_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert row_error(torch.ones(0, 4), torch.ones(0, 4)) == 0.0


def test_rounding():
    assert rounding(torch.bfloat16) == 2**-7 and rounding(torch.float32, 2) == 2**-22
