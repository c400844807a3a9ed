"""The fused ops on DTensors, by 2 and 4 processes, against one process."""

import pytest

pytest.importorskip("torch.distributed.tensor", reason="this PyTorch has no torch.distributed")
from support import sharded_fused
from support.fused_cases import OPS

pytestmark = pytest.mark.cpu_only  # processes with gloo, on CPU tensors


@pytest.mark.parametrize("name", ["whole", "rows", "tokens"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batched"])
@pytest.mark.parametrize("op", OPS)
def test_local_placements(two_ranks, op, batched, name):
    """5 rows and 5 tokens over 2 ranks are uneven."""
    two_ranks.run(sharded_fused.check_fused, 2, op, name, batched, False)


def test_rope_keeps_a_partial_sum(two_ranks):
    two_ranks.run(sharded_fused.check_fused, 2, "rope", "sum", True, False)


def test_the_gradient_of_a_norm_keeps_partial_sums(two_ranks):
    """And gathers features."""
    two_ranks.run(sharded_fused.check_norm_gradient_of_partial_sums)


@pytest.mark.parametrize("name", ["whole", "rows", "tokens"])
@pytest.mark.parametrize("op", ["add_rms_norm", "rope"])
def test_in_place(two_ranks, op, name):
    two_ranks.run(sharded_fused.check_fused, 2, op, name, False, True)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_four_ranks(four_ranks, op):
    """5 rows are 2, 2, 1 and none."""
    for name in ("rows", "tokens"):
        four_ranks.run(sharded_fused.check_fused, 4, op, name, True, False)


@pytest.mark.parametrize("op", OPS)
def test_features_are_gathered(two_ranks, op):
    two_ranks.run(sharded_fused.check_features_move, op)


def test_a_plain_tensor_beside_a_dtensor_is_refused(two_ranks):
    for found in two_ranks.run(sharded_fused.fused_refusals):
        assert found.startswith("TypeError: x is a DTensor, so residual must be, too")
