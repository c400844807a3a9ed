"""A benchmark as a program: its results on disk, its time limit, and cases that fail."""

import itertools
import json

import pytest
import torch

from benchmarks import dispatch
from benchmarks.harness import record, sweep
from benchmarks.harness.measure import EFFORTS, Effort

SHORT = Effort(0.0, (2, 2), 1e-5)


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
