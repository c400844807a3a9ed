"""PEFT's RoAd models under FSDP2 (fully_shard), by 2 processes, against one process."""

import pytest

pytest.importorskip("peft", reason="PEFT is not installed")
pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch has no torch.distributed")
from support import fsdp_cases

pytestmark = pytest.mark.cpu_only  # processes with gloo, on CPU tensors


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("each", ["model", "layer", "base_layer"])
def test_a_step_of_training(two_ranks, each, inplace):
    """base_layer and inplace: the output is a view with FSDP's hook, which a write would drop."""
    two_ranks.run(fsdp_cases.check_step, each, inplace)


def test_variants(two_ranks):
    for variant in ("road_2", "road_4"):
        two_ranks.run(fsdp_cases.check_step, "layer", False, variant, shape=(4, 16))


@pytest.mark.parametrize(
    "how", ["mixed precision", "cpu offload", "checkpointing", "compile", "two adapters", "mixed batch"]
)
def test_policies(two_ranks, how):
    two_ranks.run(fsdp_cases.check_policies, how)


@pytest.mark.parametrize(
    ("each", "group_size", "inplace", "safe"),
    [
        ("model", 64, False, False),
        ("layer", 64, True, False),
        ("base_layer", 64, False, True),
        ("layer", 128, False, False),  # FSDP cuts the one group of 128 in two: the weight moves, and comes back
        ("layer", 128, True, False),
    ],
)
def test_merge_and_unmerge(two_ranks, each, group_size, inplace, safe):
    two_ranks.run(fsdp_cases.check_merge, each, group_size, inplace, safe)


def test_refused_merges(two_ranks):
    two_ranks.run(fsdp_cases.check_refused_merges)


def test_merge_into_weights_that_are_not_sharded(two_ranks):
    two_ranks.run(fsdp_cases.check_base_not_sharded)
