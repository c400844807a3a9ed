"""The points that single_op and layer measure, and the mixes of adapters."""

import pytest

from benchmarks import fused, layer, single_op
from benchmarks.report import tables


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("grid", ["quick", "default", "gpu-check", "full"])
def test_grids(grid, device):
    for module, name in ((layer, "layer"), (single_op, "single_op"), (fused, "fused")):
        points = module.grid(grid, device)
        axes = [tuple(p[a] for a in tables.AXES[name]) for p in points]
        assert len(set(axes)) == len(axes)
        assert grid == "quick" or any(p["compiled"] for p in points)
    for p in layer.grid(grid, device):
        names = layer.draw(p["mix"], p["requests"], p["resident"])
        assert len(names) == p["requests"] and max(names) < p["resident"] and min(names) >= -1
    if grid == "gpu-check":
        assert {p["requests"] for p in layer.grid(grid, device)} >= {1, 256}


def test_mixes():
    assert len(set(layer.draw("different", 16, 16))) == 16
    assert set(layer.draw("same", 16, 16)) == {8}
    half = layer.draw("half", 16, 16)
    assert half.count(-1) == 8 and len(set(half)) == 9
    zipf, uniform = (layer.draw(mix, 4096, 1000) for mix in ("zipf", "uniform"))
    assert zipf.count(0) > 300 > 30 > uniform.count(0)  # the first of a thousand is asked for in 13 % of the requests
    with pytest.raises(ValueError, match="17 different adapters out of 16"):
        layer.draw("different", 17, 16)
    with pytest.raises(ValueError, match="mix must be one of"):
        layer.draw("random", 1, 1)
