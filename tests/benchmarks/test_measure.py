"""A measurement refuses wrong results, copies its inputs, and counts what it says."""

import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.accuracy import require_close
from benchmarks.harness.case import Case, Provider
from benchmarks.harness.cold_inputs import Inputs
from benchmarks.harness.measure import Effort, _ceilings, _on_gpu, _timing, add_bandwidth, check, measure
from benchmarks.harness.record import CLONE, COPY

SHORT = Effort(0.0, (2, 2), 1e-5, sets=3)


def doubled(inputs):
    return 2 * inputs.x.double()


def in_place(inputs):
    return inputs.x.mul_(2)


def case(*providers, base=None):
    x = torch.arange(12.0).reshape(3, 4)
    return Case({"rows": 3, "dim": 4}, Inputs(x=x), list(providers), bytes=2 * x.nbytes, base=base)


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
            base="base",
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
    for clone, *others in (_ceilings(96, torch.device("cpu")), _ceilings(96, torch.device("meta"))):
        assert not others
        source = clone.prepare(None)
        moved.append(source.nbytes + torch.clone(source).nbytes)
    assert moved == [96, 96]


def test_bandwidth_is_bytes_over_time_and_percent_that_of_the_clone():
    rows = [
        {"provider": "a", "us": 2.0, "eager_us": None, "bytes": 8000},
        {"provider": "eager", "us": None, "eager_us": 8.0, "bytes": 8000},
        {"provider": CLONE, "us": 1.0, "eager_us": 3.0, "bytes": 16000},
        {"provider": COPY, "us": 0.8, "eager_us": 3.0, "bytes": 16000},
    ]
    add_bandwidth(rows)
    assert [(r["gbps"], r["percent_of_clone"], r["percent_of_copy"]) for r in rows] == [
        (4.0, 25.0, 20.0),
        (1.0, 6.25, 5.0),
        (16.0, 100.0, 80.0),
        (20.0, 125.0, 100.0),
    ]


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
