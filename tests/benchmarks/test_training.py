"""Training of whole models in benchmarks/, and both programs from end to end."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="the models of these benchmarks are transformers'")
pytest.importorskip("peft", reason="these benchmarks compare with PEFT")

from benchmarks import generation, training
from benchmarks.baselines import models
from benchmarks.baselines.training_methods import methods
from benchmarks.harness import memory
from benchmarks.harness.record import PLAIN
from benchmarks.report import model_tables


@pytest.fixture(scope="module")
def tiny():
    return models.llama("tiny", "cpu")


def test_in_place_keeps_less_than_fresh_outputs_and_those_less_than_peft(tiny):
    base = models.converted(tiny, torch.float32)
    ids = torch.randint(256, (1, 64))
    kept = {}
    for m in methods():
        if m.name == PLAIN or m.name.startswith("RoAd1"):
            with m.use():
                made = training.Trained(m, base, ids)
                kept[m.name] = memory.saved_bytes(made.model, made.loss)
    plain, ours, in_place, peft = (
        kept[n] for n in (PLAIN, "RoAd1, PEFT on road_kernels", "RoAd1, PEFT on road_kernels, in place", "RoAd1, PEFT")
    )
    assert plain < in_place < ours < peft
    assert peft - plain > 2 * (in_place - plain)


def test_training_refuses_gradients_worse_than_twice_those_of_peft(monkeypatch, tiny):
    import road_kernels.integrations.peft._forward as forward

    true = forward.road_apply
    monkeypatch.setattr(forward, "road_apply", lambda x, *args, **kw: true(x * 1.001, *args, **kw))
    those = [m for m in methods() if m.name in ("RoAd1, PEFT", "RoAd1, PEFT on road_kernels")]
    ids = torch.randint(256, (1, 16))
    with pytest.raises(ValueError, match="RoAd1, PEFT on road_kernels: loss or gradient is off"):
        training.errors_of(those, tiny, torch.float32, ids)


def test_programs_run_and_report(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--results", str(tmp_path)]
    generation.main([*arguments, "--dtypes", "bfloat16", "--requests", "1,2"])
    training.main([*arguments, "--tokens", "8"])
    printed = capsys.readouterr().out
    assert "| **RoAd, AdapterBank** |" in printed and "Not run: RoAd, PEFT, float32 adapters" in printed
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*/*.json")}
    assert set(results) == {"generation", "training"} and len(list(tmp_path.glob("*/*.csv"))) == 2
    rows = results["generation"]["rows"]
    assert {r["requests"] for r in rows} == {1, 2} and len(rows) == 2 * 9
    failed = [r for r in rows if r["tokens_per_s"] is None]
    assert {r["provider"] for r in failed} == {"RoAd, PEFT, float32 adapters"} and all(r["note"] for r in failed)
    assert all(r["error"] is not None and r["samples"] == 2 for r in rows if r not in failed)
    rows = {r["provider"]: r for r in results["training"]["rows"]}
    assert len(rows) == 15 and all(r["step_ms"] > 0 and r["saved_bytes"] > 0 and r["error"] for r in rows.values())
    assert rows["no adapter"]["over_base"] == 1.0 and rows["LoRA rank 8"]["trainable"] > 0
    for name, result in results.items():
        assert "Quick run" in model_tables.TABLES[name](result)
