"""Samples that are seconds long: rounds, ratios, and providers that cannot run."""

import time

import pytest
import torch

from benchmarks.harness import model_runs
from benchmarks.harness.failures import attempt


def test_rounds_change_who_is_first_and_end_in_bounds():
    order = []
    samples = {name: (lambda name=name: order.append(name) or {"t": 1.0}) for name in "abc"}
    taken = model_runs.rounds(samples, seconds=0.0, bounds=(3, 9))
    assert "".join(order) == "abcbcacab" and all(len(t) == 3 for t in taken.values())
    assert len(model_runs.rounds({"a": lambda: {}}, seconds=60.0, bounds=(1, 4))["a"]) == 4
    assert model_runs.rounds({}, 0.0, (1, 1)) == {}


def test_what_takes_too_long_is_sampled_once_and_compared_with_that_round():
    samples = {"base": lambda: {"t": 1.0}, "long": lambda: time.sleep(0.02) or {"t": 3.0}}
    taken = model_runs.rounds(samples, seconds=0.0, bounds=(3, 3), longest=0.01)
    assert {name: len(t) for name, t in taken.items()} == {"base": 3, "long": 1}
    assert model_runs.spreads(taken["long"], taken["base"], {"over": "t"}, ("t",))["over"] == 3.0


def test_ratios_are_taken_round_by_round():
    base, other = [{"t": 1.0}, {"t": 10.0}, {"t": 2.0}], [{"t": 2.0}, {"t": 20.0}, {"t": 4.0}]
    row = model_runs.spreads(other, base, {"over": "t"}, ("t",))
    assert row["over"] == row["over_p20"] == row["over_p80"] == 2.0 and row["t"] == 4.0
    assert set(model_runs.spreads([], base, {"over": "t"}, ("t",)).values()) == {None}


def test_what_cannot_run_is_a_reason_and_ours_must_run():
    def fails():
        raise RuntimeError("first line\nsecond")

    def too_large():
        raise torch.OutOfMemoryError("so many GiB")

    assert attempt(fails, ours=False) == (None, "RuntimeError: first line")
    assert attempt(too_large, ours=True) == (None, "out of memory: so many GiB")
    assert attempt(lambda: 3, ours=True) == (3, None)
    with pytest.raises(RuntimeError, match="first line"):
        attempt(fails, ours=True)
