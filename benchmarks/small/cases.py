"""Small cases of the benchmarks for pytest-benchmark: one provider per test, checked against float64 first."""

import functools
from collections.abc import Callable

import pytest
import torch

from ..harness.case import Case
from ..harness.cold_inputs import copied
from ..harness.measure import check

CPU = torch.device("cpu")
BRIEF = {"min_rounds": 5, "max_time": 0.1, "warmup": True, "warmup_iterations": 3}


def each_provider(cases: dict[str, Callable[[], Case]]):
    """Parametrizes a test with (case name, provider name) of every case. Cases are built once, at collection."""
    pairs = [(name, p.name) for name, build in cases.items() for p in build().providers]
    return pytest.mark.parametrize(("case", "provider"), pairs, ids=[f"{c}: {p}" for c, p in pairs])


def lazily(build: Callable[..., Case], **axes) -> Callable[[], Case]:
    return functools.cache(functools.partial(build, device=CPU, **axes))


def run(benchmark, case: Case, name: str, provider: str) -> None:
    p = next(p for p in case.providers if p.name == provider)
    _, failed = check(Case(case.axes, case.inputs, [p], case.bytes))
    if failed:
        pytest.skip(f"{p.name} {failed[p.name]}")
    benchmark.group = name
    benchmark.extra_info["bytes"] = p.bytes or case.bytes
    state = p.prepare(copied(case.inputs))
    benchmark(p.run, state)
