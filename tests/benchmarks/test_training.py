"""Training of whole models in benchmarks/, its memory figures, and both programs from end to end."""

import json
import time

import pytest
import torch

pytest.importorskip("transformers", reason="the models of these benchmarks are transformers'")
pytest.importorskip("peft", reason="these benchmarks compare with PEFT")

from benchmarks import generation, training
from benchmarks.baselines import models
from benchmarks.harness import memory, model_runs
from benchmarks.report import model_tables


@pytest.fixture(scope="module")
def tiny():
    return models.llama("tiny", "cpu")


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

    assert model_runs.attempt(fails, ours=False) == (None, "RuntimeError: first line")
    assert model_runs.attempt(too_large, ours=True) == (None, "out of memory: so many GiB")
    assert model_runs.attempt(lambda: 3, ours=True) == (3, None)
    with pytest.raises(RuntimeError, match="first line"):
        model_runs.attempt(fails, ours=True)


def test_saved_bytes_are_those_of_known_operations():
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8, requires_grad=True)
    assert memory.saved_bytes(layer, lambda: layer(x).sum()) == x.nbytes  # the weight is there anyway
    layer.requires_grad_(False)
    assert memory.saved_bytes(layer, lambda: layer(x).sum()) == 0
    assert memory.saved_bytes(layer, lambda: (layer(x).exp() * 2).sum()) == 16 * 4 * 4  # exp keeps its result
    # Twice the same storage counts once.
    assert memory.saved_bytes(layer, lambda: (x * x).sum()) == x.nbytes


def test_resident_growth_sees_what_is_allocated():
    grown = memory.resident_growth(lambda: torch.ones(64 << 20, dtype=torch.uint8))
    if grown is None:
        pytest.skip("this system does not let a process set its memory's high water mark back")
    assert 60 << 20 < grown < 96 << 20


def test_in_place_keeps_less_than_fresh_outputs_and_those_less_than_peft(tiny):
    base = models.converted(tiny, torch.float32)
    ids = torch.randint(256, (1, 64))
    kept = {}
    for m in training.methods():
        if m.name == training.BASE or m.name.startswith("RoAd1"):
            with m.use():
                made = training.Trained(m, base, ids)
                kept[m.name] = memory.saved_bytes(made.model, made.loss)
    plain, ours, in_place, peft = (
        kept[n]
        for n in (training.BASE, "RoAd1, PEFT on road_kernels", "RoAd1, PEFT on road_kernels, in place", "RoAd1, PEFT")
    )
    assert plain < in_place < ours < peft
    assert peft - plain > 2 * (in_place - plain)


def test_training_refuses_gradients_worse_than_twice_those_of_peft(monkeypatch, tiny):
    import road_kernels.integrations.peft._forward as forward

    true = forward.road_apply
    monkeypatch.setattr(forward, "road_apply", lambda x, *args, **kw: true(x * 1.001, *args, **kw))
    methods = [m for m in training.methods() if m.name in ("RoAd1, PEFT", "RoAd1, PEFT on road_kernels")]
    ids = torch.randint(256, (1, 16))
    with pytest.raises(ValueError, match="RoAd1, PEFT on road_kernels: loss or gradient is off"):
        training.errors_of(methods, tiny, torch.float32, ids)


def test_programs_run_and_report(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--results", str(tmp_path)]
    generation.main([*arguments, "--dtypes", "bfloat16", "--requests", "1,2"])
    training.main([*arguments, "--tokens", "8"])
    printed = capsys.readouterr().out
    assert "| **RoAd, AdapterBank** |" in printed and "Not run: RoAd, PEFT, float32 adapters" in printed
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*/*.json")}
    assert set(results) == {"generation", "training"} and len(list(tmp_path.glob("*/*.csv"))) == 2
    rows = results["generation"]["rows"]
    assert {r["requests"] for r in rows} == {1, 2} and len(rows) == 2 * 7
    failed = [r for r in rows if r["tokens_per_s"] is None]
    assert {r["provider"] for r in failed} == {"RoAd, PEFT, float32 adapters"} and all(r["note"] for r in failed)
    assert all(r["error"] is not None and r["samples"] == 2 for r in rows if r not in failed)
    rows = {r["provider"]: r for r in results["training"]["rows"]}
    assert len(rows) == 15 and all(r["step_ms"] > 0 and r["saved_bytes"] > 0 and r["error"] for r in rows.values())
    assert rows["no adapter"]["over_base"] == 1.0 and rows["LoRA rank 8"]["trainable"] > 0
    for name, result in results.items():
        assert "Quick run" in model_tables.TABLES[name](result)
