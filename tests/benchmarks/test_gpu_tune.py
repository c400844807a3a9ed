"""The comparison of tuning choices, as far as it goes without a GPU: what it builds, measures and writes."""

import json
import re
from pathlib import Path

import torch

from benchmarks import gpu_tune

HEADER = Path(__file__).parents[2] / "csrc" / "cuda" / "tuning.h"


def test_every_variant_changes_a_choice_that_exists():
    defines = re.findall(r"#define ROAD_(\w+) (\d+|\(\d+ << 20\))", HEADER.read_text())
    standing = {name: eval(value) for name, value in defines}
    for name, choices in gpu_tune.VARIANTS.items():
        assert bool(choices) == (name != gpu_tune.STANDING)
        for macro, value in choices.items():
            assert standing[macro] != value, f"{name}: that is what stands in tuning.h"


def test_what_is_measured():
    found = gpu_tune.times(torch.device("cpu"), small=True)
    ops = {"forward", "backward", "batched forward", "batched backward", "rotate_silu_mul"}
    assert {work.split(",")[0] for work in found} == ops
    assert all(percent > 0 for percent in found.values())


def test_a_variant_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_tune, "build", lambda name: "no such macro" if "256 threads" in name else None)
    monkeypatch.setattr(gpu_tune, "measured", lambda name: None if "2 rows" in name else {"forward: cuda": 97.5})
    monkeypatch.setattr(gpu_tune.record, "machine", lambda device: {"gpu": "a GPU"})
    assert gpu_tune.main(["--only", "a thread from", "256 threads", "--results", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu_tune.json").read_text())["percent_of_copy"]
    assert list(results) == [
        gpu_tune.STANDING,
        "forward: 1 row a thread from shared tables of adjacent features",
        f"{gpu_tune.STANDING}, again",
    ]
    said = capsys.readouterr()
    assert "256 threads was not built: no such macro" in said.err and "97.5" in said.out
