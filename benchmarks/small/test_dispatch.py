"""benchmarks/dispatch.py as pytest-benchmarks, without its compiled mode, whose compilation takes seconds."""

import pytest

from .. import dispatch
from . import cases

ENTRIES = {entry.name: entry for entry in dispatch.entries(cases.CPU)}


@pytest.mark.benchmark(**cases.BRIEF)
@pytest.mark.parametrize("mode", dispatch.MODES[:3])
@pytest.mark.parametrize("entry", ENTRIES)
def test_dispatch(benchmark, mode, entry):
    run = dispatch.prepare(mode, ENTRIES[entry], cases.CPU)
    dispatch.require_right(ENTRIES[entry], mode, run(), cases.CPU)
    benchmark.group = f"dispatch, {mode}"
    benchmark(run)
