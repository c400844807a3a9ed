"""Small cases of benchmarks/layer.py."""

import pytest

from ..layer import build
from . import cases

BASE = {"phase": "decode", "requests": 8, "rank": 8, "mix": "different", "resident": 16}
BASE |= {"dim_in": 512, "dim_out": 1024, "dtype": "float32"}
POINTS = {
    "decode": {},
    "decode, half without, bfloat16": {"mix": "half", "dtype": "bfloat16"},
    "decode, zipf": {"mix": "zipf"},
    "prefill": {"phase": "prefill", "tokens": 32, "requests": 4},
}
CASES = {name: cases.lazily(build, **(BASE | axes)) for name, axes in POINTS.items()}


@pytest.mark.benchmark(**cases.BRIEF)
@cases.each_provider(CASES)
def test_layer(benchmark, case, provider):
    cases.run(benchmark, CASES[case](), f"layer, {case}", provider)
