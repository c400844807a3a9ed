"""Small cases of benchmarks/single_op.py."""

import pytest

from ..single_op import BASE, BOTH, build
from . import cases

POINTS = {
    "decode": {"rows": 8},
    "prefill": {"rows": 256},
    "road_2, float32": {"rows": 64, "variant": "road_2", "dtype": "float32", "group_size": 2},
    "road_4, float16": {"rows": 64, "variant": "road_4", "dtype": "float16", "group_size": 1024},
    "backward": {"rows": 64, "op": "backward"},
    "training step": {"rows": 64, "op": BOTH},
}
CASES = {name: cases.lazily(build, **(BASE | {"dim": 1024} | axes)) for name, axes in POINTS.items()}


@pytest.mark.benchmark(**cases.BRIEF)
@cases.each_provider(CASES)
def test_single_op(benchmark, case, provider):
    cases.run(benchmark, CASES[case](), f"single op, {case}", provider)
