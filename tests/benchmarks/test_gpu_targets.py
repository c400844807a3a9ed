"""The targets of a GPU: which bound a row has to meet."""

import torch

from benchmarks import gpu_targets
from benchmarks.gpu_batched_cases import MEMCPY, RANDOM, SINGLE, SPREAD
from benchmarks.gpu_cases import COMPILED
from benchmarks.gpu_fused_cases import ALONE, PAIR
from benchmarks.harness.record import CLONE, COPY


def row(work, provider, us=1.0, percent=95.0, overhead=None, ours=True):
    columns = {"work": work, "provider": provider, "us": us, "percent_of_copy": percent, "overhead": overhead}
    return columns | {"ours": ours}


def targets(kind, *rows):
    return {(t.work, t.backend): t for t in gpu_targets.targets_of(kind, list(rows), "cuda")}


def test_forward_and_backward():
    name = "forward, 16384 x 4096, group_size 64, road_1, tables"
    others = [row(name, CLONE, ours=False), row(name, COPY, ours=False), row(name, COMPILED, us=0.9, ours=False)]
    found = targets("forward", row(name, "cuda", percent=98.5), row(name, "triton", us=0.97, percent=92), *others)
    assert found[name, "cuda"].met and found[name, "cuda"].required == 98
    assert not found[name, "triton"].met and found[name, "triton"].required == 93
    assert not found[f"{name}, against {COMPILED}", "cuda"].met
    assert not found[f"{name}, against triton", "cuda"].met  # 3 % behind
    assert len(found) == 4
    for work, required in {
        "forward, 1024 x 4096, group_size 64, road_1, tables": 90,
        "forward, 16384 x 4096, group_size 64, road_1, theta and alpha": 97,
        "forward, 16384 x 4096, group_size 64, road_4, theta and alpha": 93,
        "forward, 16384 x 4096, group_size 64, road_2, tables": 96,
        "backward, 16384 x 4096, group_size 64, road_1, parameters only": 93,
        "backward, 16384 x 4096, group_size 64, road_4": 90,
    }.items():
        assert targets(work.split(",")[0], row(work, "cuda"))[work, "cuda"].required == required, work


def test_mixed_batches_and_decoding():
    name = "batched forward, 16384 x 4096, bfloat16 tables"
    rows = [row(name, SINGLE, overhead=0.0), row(name, SPREAD, overhead=0.02), row(name, RANDOM, overhead=0.11)]
    found = targets("batched forward", *rows)
    assert {t.measured: (t.required, t.met) for t in found.values()} == {0.02: (0.01, False), 0.11: (0.12, True)}
    name = "decode, 1 x 4096, each row its own adapter, in place"
    rows = [row(name, "cuda", overhead=0.27), row(name, "cuda, overlap", overhead=-0.05)]
    found = targets("decode", *rows, row(name, MEMCPY, overhead=0.0, ours=False))
    assert found[name, "cuda"].met and not found[name, "cuda, overlap"].met and len(found) == 2


def test_fused_ops():
    name = "rotate_rope, 64 x 6144, cuda"
    rows = [row(name, ALONE, overhead=0.0), row(name, SPREAD, overhead=0.04), row(name, PAIR, overhead=0.5)]
    found = targets("fused", *rows)
    assert len(found) == 1 and found[name, "cuda"].required == 0.03 and not found[name, "cuda"].met


def test_every_case_can_be_named():
    """Without making one: that takes a GPU's memory."""
    kinds = [kind for kind, _ in gpu_targets.cases(False, torch.device("cpu"))]
    assert len(kinds) > 25 and {"forward", "backward", "decode", "merge", "training", "fused"} <= set(kinds)
