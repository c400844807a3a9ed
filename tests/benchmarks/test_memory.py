"""The memory figures of a training step."""

import pytest
import torch

from benchmarks.harness import memory


def test_saved_bytes_are_those_of_known_operations():
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8, requires_grad=True)
    assert memory.saved_bytes(layer, lambda: layer(x).sum()) == x.nbytes  # the weight is there anyway
    layer.requires_grad_(False)
    assert memory.saved_bytes(layer, lambda: layer(x).sum()) == 0
    assert memory.saved_bytes(layer, lambda: (layer(x).exp() * 2).sum()) == 16 * 4 * 4  # exp keeps its result
    # Twice the same storage counts once.
    assert memory.saved_bytes(layer, lambda: (x * x).sum()) == x.nbytes


def test_resident_growth_sees_what_is_allocated():
    grown = memory.resident_growth(lambda: torch.ones(64 << 20, dtype=torch.uint8))
    if grown is None:
        pytest.skip("this system does not let a process set its memory's high water mark back")
    assert 60 << 20 < grown < 96 << 20
