"""The public functions on DTensors, by 2 and 4 processes, against one process."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("torch.distributed.tensor", reason="this PyTorch has no torch.distributed")
from support import sharded
from support.backends import usable_backends
from torch.distributed.tensor import Replicate, Shard

FORMS = ("road_1", "road_2", "road_4", "table", "table_half")

pytestmark = pytest.mark.cpu_only  # processes with gloo, on CPU tensors
NAMES = ("whole", "rows", "tokens", "features", "sum")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batched"])
@pytest.mark.parametrize("form", FORMS)
def test_local_placements(two_ranks, form, batched, name):
    """5 rows and 5 tokens over 2 ranks are uneven."""
    two_ranks.run(sharded.check_call, 2, form, batched, False, name)


@pytest.mark.parametrize("name", NAMES[:4])  # no op keeps a partial sum, and a leaf cannot be written
@pytest.mark.parametrize("form", ["road_1", "road_4", "table"])
def test_in_place(two_ranks, form, name):
    two_ranks.run(sharded.check_call, 2, form, False, True, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(two_ranks, dtype):
    for name in ("rows", "features"):
        two_ranks.run(sharded.check_call, 2, "road_2", False, False, name, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_four_ranks(four_ranks, form, name):
    """5 rows are 2, 2, 1 and none; 7 groups of 2 features are 2, 2, 2 and 1."""
    for batched in (False, True):
        # DTensor cuts the 28 parameters of road_4 for 14 features into 7s, which are no whole groups.
        uneven = {} if form == "road_4" else {"dim": 14, "group_size": 2}
        four_ranks.run(sharded.check_call, 4, form, batched, False, name, **uneven)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_dimensions_of_a_mesh(four_ranks, dtype):
    four_ranks.run(sharded.check_two_dims, dtype)


@pytest.mark.parametrize(
    ("name", "cut", "expected", "sent"),
    [
        # 24 features over 2 ranks cut the second group of 8.
        ("features", Replicate(), Replicate(), {"all_gather_into_tensor": 1}),
        ("rows", Shard(0), Shard(0), {"all_gather_into_tensor": 2}),
        ("whole", Shard(0), Replicate(), {"all_gather_into_tensor": 2}),
    ],
)
def test_what_is_not_local_is_redistributed(two_ranks, name, cut, expected, sent):
    two_ranks.run(sharded.check_moved, name, cut, expected, sent)


def test_replicated_tensors_are_sharded_without_sending(two_ranks):
    two_ranks.run(sharded.check_moved, "whole", Shard(0), Shard(2), {}, group_size=4)
    two_ranks.run(sharded.check_moved, "features", Replicate(), Shard(2), {}, group_size=4)


def test_refusals(two_ranks):
    """In one sentence, before anything is written, and on every rank."""
    for found in two_ranks.run(sharded.refusals):
        assert "cannot write in place into a tensor of shape [5, 5, 24]" in found["cut"]
        assert "multiples of 8" in found["cut"]
        assert found["plain parameters"].startswith("TypeError: x is a DTensor, so theta and alpha must be, too")
        assert found["plain x"].startswith("TypeError: theta is a DTensor, so x must be, too")
        assert found["plain ids"].startswith("TypeError: x is a DTensor, so adapter_ids must be, too")
        assert found["mesh"].startswith("ValueError: theta must be on the mesh of x")
        if "cpu" in usable_backends():
            assert found["backend"].startswith("RuntimeError: shards on cpu are computed by the backend 'cpu'")
        assert found["group_size"].startswith("ValueError: group_size must be even")
        assert found["plain table"].startswith("TypeError: theta is a DTensor, so alpha must be, too")
        assert found["plain weight"].startswith("TypeError: theta is a DTensor, so weight must be, too")


@pytest.mark.parametrize("group_size", [8, 32])
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_tables_merge_and_unmerge(two_ranks, variant, group_size):
    """A group of 32 is cut by a weight that is sharded by rows, as FSDP cuts it: the weight moves, and comes back."""
    two_ranks.run(sharded.check_tables_and_merge, 2, variant, group_size)


def test_the_ops(two_ranks):
    two_ranks.run(sharded.check_ops)


def test_autograd_sees_writes(two_ranks):
    two_ranks.run(sharded.check_saved)


@pytest.mark.parametrize("name", ["whole", "rows", "features"])
def test_second_order(two_ranks, name):
    if name == "features" and torch.__version__ < "2.13":
        pytest.skip("DTensor has no rule for a view of the formula there")
    two_ranks.run(sharded.check_second_order, name)


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled(two_ranks, inplace):
    two_ranks.run(sharded.check_compiled, inplace)


def test_importing_road_kernels_does_not_import_dtensor():
    code = "import sys, road_kernels; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
