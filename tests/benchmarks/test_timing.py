"""Samples of several providers: taken in turn, in batches, and summed up by their spread."""

import pytest

from benchmarks.harness import timing


def test_spread_is_median_and_inner_three_fifths():
    assert timing.spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0], "us", 10) == {"us": 35.0, "us_p20": 20.0, "us_p80": 50.0}
    assert timing.spread([7.0], "t") == {"t": 7.0, "t_p20": 7.0, "t_p80": 7.0}


def test_turns_go_on_where_the_last_batch_ended():
    seen = []
    calls = timing.turns(seen.append, "abc")
    calls(2)
    calls(3)
    assert "".join(seen) == "abcab"


def test_interleaving_takes_one_sample_of_each_a_round_and_changes_who_is_first(monkeypatch):
    order = []
    calls = {name: (lambda n, name=name: None) for name in "abc"}

    def sample(run, n):
        order.append(next(name for name, c in calls.items() if c is run))
        return 0.5

    samples = timing.interleave(calls, seconds=0.0, rounds=(3, 9), sample_seconds=1.0, sample=sample)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # one each to size the batches, then three rounds
    assert samples == {name: [0.5] * 3 for name in "abc"}


def test_interleaving_ends_at_the_upper_bound_of_rounds():
    samples = timing.interleave({"a": lambda n: None}, seconds=60.0, rounds=(1, 4), sample_seconds=0.0)
    assert len(samples["a"]) == 4


@pytest.mark.parametrize(("seconds", "n"), [(1.0, 1), (0.01, 10), (1e-9, 50), (0.0, 50)])
def test_calls_per_sample(seconds, n):
    assert timing.calls_per_sample(seconds, 0.1, most=50) == n
