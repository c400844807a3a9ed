"""Tensor parallel models with RoAd on all linear layers, by 2 and 4 processes, against one process."""

import pytest
import torch

pytest.importorskip("peft", reason="PEFT is not installed")
pytest.importorskip("torch.distributed.tensor", reason="this PyTorch has no torch.distributed")
import torch.distributed.checkpoint as dcp
from support import tp_cases
from support.peft_models import make_model

pytestmark = pytest.mark.cpu_only  # processes with gloo, on CPU tensors


@pytest.mark.parametrize(
    ("kv_heads", "variant", "inplace"), [(2, "road_1", False), (1, "road_4", False), (2, "road_2", True)]
)
def test_llama(two_ranks, kv_heads, variant, inplace):
    """Forward, two accumulated backwards, merge and unmerge. One kv head for two ranks is replicated."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    two_ranks.run(tp_cases.check_llama, 2, kv_heads, variant, inplace)


@pytest.mark.slow
def test_llama_by_four(four_ranks):
    pytest.importorskip("transformers", reason="transformers is not installed")
    four_ranks.run(tp_cases.check_llama, 4, 1, "road_1", False)


@pytest.mark.parametrize("safe", [False, True])
def test_merge(two_ranks, safe):
    two_ranks.run(tp_cases.check_merge, safe)


def test_several_adapters(two_ranks):
    two_ranks.run(tp_cases.check_several)


def test_compiled(two_ranks):
    two_ranks.run(tp_cases.check_compiled)


def test_mixed_batch(two_ranks):
    two_ranks.run(tp_cases.check_mixed_batch)


def test_sequence_parallel(two_ranks):
    two_ranks.run(tp_cases.check_sequence_parallel, 2)


def test_refusals(two_ranks):
    for found in two_ranks.run(tp_cases.refusals):
        assert found["cut"].startswith(
            "ValueError: 128 features over 2 ranks are not sharded at multiples of group_size 128"
        )
        assert found["style"].startswith("TypeError: style must be ColwiseParallel or RowwiseParallel")


def test_checkpoints_of_two_ranks_in_one_process(two_ranks, tmp_path):
    saved, _ = two_ranks.run(tp_cases.save, 2, str(tmp_path))
    model = make_model(("road_2", 16))
    model.load_state_dict(torch.load(tmp_path / "whole.pt"))
    state = make_model(("road_2", 16)).state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "shards", no_dist=True)
    for name, t in saved.items():
        assert torch.equal(model.state_dict()[name], t) and torch.equal(state[name], t)


@pytest.mark.slow
def test_checkpoints_of_two_ranks_by_four(two_ranks, four_ranks, tmp_path):
    saved, _ = two_ranks.run(tp_cases.save, 2, str(tmp_path))
    for loaded in four_ranks.run(tp_cases.load, 4, str(tmp_path)):
        for name, t in saved.items():
            assert torch.equal(loaded[name], t)


def test_fsdp_checkpoint_in_one_process(two_ranks, tmp_path):
    saved, _ = two_ranks.run(tp_cases.save_fsdp, str(tmp_path))
    one = make_model(("road_1", 64))
    state = {"model": one.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path / "fsdp", no_dist=True)
    assert saved.keys() == state["model"].keys()
    for name, t in saved.items():
        assert torch.equal(state["model"][name], t)
    one.load_state_dict(saved)


@pytest.mark.slow
def test_with_fsdp(four_ranks):
    four_ranks.run(tp_cases.check_two_parallelisms)
