"""Small cases of benchmarks/layer.py."""

import pytest

from . import small
from .layer import build

BASE = {"phase": "decode", "requests": 8, "rank": 8, "mix": "different", "resident": 16}
BASE |= {"dim_in": 512, "dim_out": 1024, "dtype": "float32"}
POINTS = {
    "decode": {},
    "decode, half without, bfloat16": {"mix": "half", "dtype": "bfloat16"},
    "decode, zipf": {"mix": "zipf"},
    "prefill": {"phase": "prefill", "tokens": 32, "requests": 4},
}
CASES = {name: small.lazily(build, **(BASE | axes)) for name, axes in POINTS.items()}


@pytest.mark.benchmark(**small.BRIEF)
@small.each_provider(CASES)
def test_layer(benchmark, case, provider):
    small.run(benchmark, CASES[case](), f"layer, {case}", provider)
