"""The method that every benchmark uses: it refuses wrong results, rotates its inputs and counts what it says."""

import itertools
import json

import pytest
import torch

from benchmarks import dispatch
from benchmarks.harness import record, sweep, timing
from benchmarks.harness.accuracy import require_close, rounding, row_error
from benchmarks.harness.cold_inputs import copied, held_bytes, sets_needed
from benchmarks.harness.measure import (
    CLONE,
    EFFORTS,
    Case,
    Effort,
    Inputs,
    Provider,
    _clone,
    _on_gpu,
    _timing,
    add_bandwidth,
    check,
    measure,
)

SHORT = Effort(0.0, (2, 2), 1e-5, sets=3)


def doubled(inputs):
    return 2 * inputs.x.double()


def in_place(inputs):
    return inputs.x.mul_(2)


def case(*providers, baseline=None):
    x = torch.arange(12.0).reshape(3, 4)
    return Case({"rows": 3, "dim": 4}, Inputs(x=x), list(providers), bytes=2 * x.nbytes, baseline=baseline)


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


@pytest.mark.parametrize(
    ("touched", "held", "sets"),
    [
        (100, 100, 10),  # a thousand bytes of working set
        (101, 101, 10),  # rounded up
        (1, 1, 256),  # tiny: the bound
        (100, 4000, 2),  # a large bank: the memory
        (5000, 20000, 1),
    ],
)
def test_sets_needed(touched, held, sets):
    assert sets_needed(touched, held, working_set=1000, memory=8000) == sets


def test_copies_are_of_their_own_memory_and_keep_what_asks_for_gradients():
    inputs = Inputs(x=torch.ones(2, requires_grad=True), ids=[1, 2], y=torch.ones(3))
    other = copied(inputs)
    assert other.x.requires_grad and other.x.is_leaf and other.ids is inputs.ids
    assert other.x.data_ptr() != inputs.x.data_ptr() and other.y.data_ptr() != inputs.y.data_ptr()
    assert held_bytes(inputs) == 20


def test_error_is_that_of_the_worst_row():
    want = torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]])
    got = want.clone()
    got[0, 0] += 0.5
    assert row_error(got, want) == pytest.approx(0.1)
    got = want.clone()
    got[1, 1] = 5.0  # a row of zeros counts against the largest row
    assert row_error(got, want) == pytest.approx(0.1)
    assert row_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert row_error(torch.ones(0, 4), torch.ones(0, 4)) == 0.0


def test_wrong_results_are_refused_with_the_provider_named():
    one = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"slow way: a row is off by 1\.00e\+00"):
        require_close("slow way", 2 * one, one, 0.5)
    with pytest.raises(ValueError, match="slow way: shapes"):
        require_close("slow way", one[0], one, 0.5)
    with pytest.raises(ValueError, match="shapes"):
        require_close("one of two missing", one, (one, one), 0.5)
    wrong_in_one_row = Provider("late", lambda i: i.x * torch.tensor([[2.0], [2.0], [2.1]]), doubled, 1e-3)
    with pytest.raises(ValueError, match=r"late in \{'rows': 3"):
        measure(case(wrong_in_one_row), "cpu", SHORT)


def test_check_is_on_copies_and_computes_what_several_expect_once():
    asked = []

    def expect(inputs):
        asked.append(1)
        return doubled(inputs)

    c = case(Provider("a", in_place, expect), Provider("b", in_place, expect), Provider("c", in_place, None))
    assert check(c) == ({"a": 0.0, "b": 0.0}, {})
    assert len(asked) == 1
    assert torch.equal(c.inputs.x, torch.arange(12.0).reshape(3, 4))


def test_rows_of_a_measurement():
    seen = set()

    def run(x):
        seen.add(x.data_ptr())
        return 2 * x

    rows = measure(
        case(
            Provider("base", run, doubled, prepare=lambda i: i.x, ours=True),
            Provider("in place", in_place, doubled, output="in place", bytes=24),
            Provider("part", lambda i: 2 * i.x, lambda i: doubled(i)[:1], view=lambda y, i: y[:1]),
            baseline="base",
        ),
        "cpu",
        SHORT,
    )
    assert [r["provider"] for r in rows] == ["base", "in place", "part", CLONE]
    base, inplace, _, ceiling = rows
    assert len(seen) >= 3  # the sets (and the one of the check)
    assert base["rows"] == 3 and base["ours"] and base["sets"] == 3 and not base["cold"]
    assert base["overhead"] == base["overhead_p80"] == 0.0 and inplace["overhead"] != 0.0
    assert [r["bytes"] for r in rows] == [96, 24, 96, 96]
    assert [r["error"] for r in rows] == [0.0, 0.0, 0.0, None]
    assert base["us_p20"] <= base["us"] <= base["us_p80"] and base["timed"] == "eager"
    assert ceiling["percent_of_clone"] == 100.0


def test_clone_moves_the_bytes_of_the_work():
    moved = []
    spy = Provider("work", lambda i: i.x, doubled, tolerance=1.0)
    measured = measure(case(spy), "cpu", SHORT)
    assert measured[-1]["bytes"] == 96
    source = _clone(96, torch.device("cpu")).prepare(None)
    moved.append(source.nbytes + torch.clone(source).nbytes)
    assert moved == [96]


def test_bandwidth_is_bytes_over_time_and_percent_that_of_the_clone():
    rows = [
        {"provider": "a", "us": 2.0, "eager_us": None, "bytes": 8000},
        {"provider": "eager", "us": None, "eager_us": 8.0, "bytes": 8000},
        {"provider": CLONE, "us": 1.0, "eager_us": 3.0, "bytes": 16000},
    ]
    add_bandwidth(rows, CLONE)
    assert [(r["gbps"], r["percent_of_clone"]) for r in rows] == [(4.0, 25.0), (1.0, 6.25), (16.0, 100.0)]


def test_results_are_written_with_their_machine_and_read_back(tmp_path):
    rows = [{"rows": 1, "provider": "a, b", "us": 1.5}, {"rows": 2, "provider": "c", "us": None, "note": "why"}]
    path = record.save("thing", rows, root=tmp_path, grid="quick")
    result = record.load(path)
    assert result["rows"] == rows and result["grid"] == "quick" and result["benchmark"] == "thing"
    assert result["machine"].keys() >= {"processor", "threads", "torch", "triton", "commit", "date", "thp"}
    assert path.parent.parent == tmp_path and path.parent.name == path.parent.name.lower()
    assert path.with_suffix(".csv").read_text().splitlines() == ["rows,provider,us,note", '1,"a, b",1.5,', "2,c,,why"]
    assert json.loads(path.read_text()) == result


def test_a_sweep_names_what_the_time_limit_left_out(tmp_path, monkeypatch, capsys):
    options = sweep.arguments("", ["--quick", "--device", "cpu", "--seconds", "10", "--results", str(tmp_path)])
    clock_ = itertools.chain([0.0, 1.0, 2.0], itertools.repeat(11.0))
    monkeypatch.setattr(sweep.time, "perf_counter", lambda: next(clock_))
    monkeypatch.setattr(sweep, "measure", lambda case, *_: [{"k": case, "us": 1.0}])
    rows = sweep.sweep("thing", [{"k": 1}, {"k": 2}, {"k": 3}], lambda k, device: k, options)
    assert [r["k"] for r in rows] == [1]
    (path,) = tmp_path.glob("*/thing.json")
    assert record.load(path)["left_out"] == [f"k {k}: after the limit of 10 s" for k in (2, 3)]
    assert "left out: k 3" in capsys.readouterr().err


def test_a_case_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    def build(k, device):
        if k == 2:
            raise AssertionError
        return k

    monkeypatch.setattr(sweep, "measure", lambda case, *_: [{"k": case, "us": 1.0}])
    with pytest.raises(RuntimeError, match="thing: 1 cases failed, first k 2: AssertionError: AssertionError"):
        sweep.sweep("thing", [{"k": 1}, {"k": 2}, {"k": 3}], build, sweep.arguments("", ["--results", str(tmp_path)]))
    (path,) = tmp_path.glob("*/thing.json")
    assert [r["k"] for r in record.load(path)["rows"]] == [1, 3]
    assert record.load(path)["left_out"] == ["k 2: AssertionError: AssertionError"]


def test_no_compilation_starts_after_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "entries", lambda device: [dispatch.Entry(n, None) for n in "abc"])
    monkeypatch.setattr(dispatch, "prepare", lambda *_: lambda: None)
    monkeypatch.setattr(dispatch, "require_right", lambda *_: None)
    results = sweep.Results("thing", sweep.arguments("", ["--seconds", "0", "--results", str(tmp_path)]))
    rows = dispatch.measure_mode("compiled", torch.device("cpu"), SHORT, results)
    assert [r["provider"] for r in rows] == ["a"]
    assert results.left_out == [f"compiled, {n}: after the limit of 0 s" for n in "bc"]


def test_every_grid_has_its_effort():
    assert set(sweep.GRIDS) == set(EFFORTS) == {"quick", "default", "gpu-check", "full"}


def test_rounding():
    assert rounding(torch.bfloat16) == 2**-7 and rounding(torch.float32, 2) == 2**-22


@pytest.fixture
def pretended_gpu(monkeypatch):
    """The bookkeeping of a GPU's measurements, with graphs and clocks that only count."""
    graphs = {}

    class Graph:
        def __init__(self, run, states, n):
            if run(states[0]) is None:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            self.n, self.launched = n, 0
            graphs[len(graphs)] = self

        def launch(self, runway):
            self.launched += 1

        def sample(self):
            return 2e-6

    monkeypatch.setattr(timing, "Graph", Graph)
    monkeypatch.setattr(timing, "eager_sample", lambda calls, n: 5e-6)
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing.torch, "empty", lambda *a, **k: None)
    return graphs


def test_graphs_and_eager_calls_of_a_gpu_are_kept_apart(pretended_gpu):
    providers = [
        Provider("base", lambda s: s, None),
        Provider("loop", lambda s: s, None, eager_only="reads a list"),
        Provider("other's", lambda s: None, None, may_fail=True),
    ]
    states = {p.name: [1, 2, 3] for p in providers}
    samples, uncaptured = _on_gpu(providers, states, Effort(0.0, (4, 4), 1e-5, eager_rounds=2))
    assert samples["base"] == {"eager_us": [5e-6] * 2, "us": [2e-6] * 4}
    assert samples["loop"] == samples["other's"] == {"eager_us": [5e-6] * 2}
    assert uncaptured["loop"] == "reads a list"
    assert uncaptured["other's"] == "capture failed: operation not permitted when stream is capturing"
    (graph,) = pretended_gpu.values()
    assert graph.n == 3 and graph.launched == 2 + 4  # every set at least once; two rounds of warm-up
    row = _timing(samples["loop"], samples["base"])
    assert row["timed"] == "eager" and row["us"] is None and row["overhead"] is None
    assert row["eager_us"] == 5.0 and row["eager_overhead"] == 0.0
    assert _timing(samples["base"], samples["base"])["timed"] == "graph"


def test_our_own_capture_must_not_fail(pretended_gpu):
    with pytest.raises(RuntimeError, match="not permitted"):
        _on_gpu([Provider("ours", lambda s: None, None)], {"ours": [1]}, SHORT)


def test_a_foreign_function_that_is_missing_becomes_a_note():
    def absent(inputs):
        raise NotImplementedError("not for this dtype\ndetails")

    rows = measure(
        case(Provider("work", doubled, doubled), Provider("x", absent, doubled, may_fail=True)), "cpu", SHORT
    )
    assert [(r["provider"], r["note"]) for r in rows] == [
        ("work", None),
        (CLONE, None),
        ("x", "failed: not for this dtype"),
    ]
    assert rows[2]["us"] is None and rows[2]["gbps"] is None
    with pytest.raises(NotImplementedError):
        measure(case(Provider("ours", absent, doubled)), "cpu", SHORT)
