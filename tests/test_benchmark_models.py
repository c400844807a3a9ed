"""Generation and training of whole models in benchmarks/: what is timed computes what it says, and figures add up."""

import functools
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is no part of the installed package

pytest.importorskip("transformers", reason="the models of these benchmarks are transformers'")
pytest.importorskip("peft", reason="these benchmarks compare with PEFT")

from benchmarks import decoding, generation, memory, model_report, model_runs, models, serving, training
from benchmarks.accuracy import row_error

REQUESTS, PROMPT, MORE = 3, 9, 3


@functools.cache
def served():
    return generation.Served("tiny", "cpu", REQUESTS, PROMPT)


def test_the_seven_linear_layers_of_every_block_are_adapted():
    found = models.adapted(served().model)
    assert len(found) == 7 * models.SHAPES["tiny"]["num_hidden_layers"]
    assert {name.rpartition(".")[2] for name in found} == set(models.LINEARS)
    assert not any(p.requires_grad for p in served().model.parameters())


def test_7b_is_the_shape_of_llama_7b():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**models.SHAPES["7b"]))
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616  # of the published checkpoint


def test_copies_share_weights_and_conversions_do_not():
    model = served().model
    shared = models.shared_copy(model)
    assert shared is not model and shared.lm_head is not model.lm_head
    assert shared.lm_head.weight is model.lm_head.weight
    other = models.converted(model, torch.float64)
    assert other.lm_head.weight.dtype == torch.float64 and model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(other.lm_head.weight, model.lm_head.weight.double())
    # In another dtype the rotary frequencies would make it another function.
    assert torch.equal(other.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_reference_of_road_is_peft_merged_in_float64():
    """Two definitions that share no code: PEFT's dense matrix times the weight, and ours in PyTorch."""
    s, adapter = served(), 1
    peft_model = serving.peft_road(models.converted(s.model, torch.float64), s.road, torch.float64)
    peft_model.set_adapter(str(adapter))
    with torch.no_grad():
        want = peft_model(input_ids=s.tokens[adapter : adapter + 1], use_cache=False).logits[:, -1 - MORE :]
    got = s.reference["RoAd"][adapter : adapter + 1]
    assert row_error(got, want) < 1e-6  # transformers normalises in float32
    assert row_error(s.reference["base"][adapter : adapter + 1], want) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])
def test_every_provider_gives_the_reference_logits(dtype, static):
    s = served()
    errors = {}
    for p in s.providers(dtype):
        decoder = (
            decoding.Static(p.model, REQUESTS, PROMPT + MORE, capture=False) if static else decoding.Eager(p.model)
        )
        if dtype == torch.bfloat16 and p.name == "RoAd, PEFT, float32 adapters":
            with p.use(REQUESTS), pytest.raises(RuntimeError, match="Index put"):
                decoding.forced(decoder, s.tokens, PROMPT)
            continue
        with p.use(REQUESTS):
            decoding.forced(decoder, s.tokens, PROMPT)  # a decoder starts anew with every prompt
            errors[p.name] = row_error(decoding.forced(decoder, s.tokens, PROMPT), s.reference[p.family])
    assert len(errors) == 6
    assert errors["no adapter"] < 4 * torch.finfo(dtype).eps  # two layers
    assert max(errors.values()) < 4 * errors["no adapter"]
    assert row_error(s.reference["RoAd"], s.reference["base"]) > 0.1
    assert row_error(s.reference["LoRA"], s.reference["base"]) > 0.1


def test_generation_is_that_of_transformers_and_of_peft():
    s = served()
    prompt = s.tokens[:, :PROMPT]
    for p in s.providers(torch.float32):
        with p.use(REQUESTS):
            want = p.model.generate(prompt, max_new_tokens=5, do_sample=False)[:, PROMPT:]
            for decoder in (decoding.Eager(p.model), decoding.Static(p.model, REQUESTS, PROMPT + 5, capture=False)):
                tokens, first, others = decoding.generate(decoder, prompt, 5)
                assert torch.equal(tokens, want), p.name
                assert first > 0 and others > 0
    peft_model = serving.peft_road(models.converted(s.model, torch.float32), s.road, torch.float32)
    names = [str(r) for r in range(REQUESTS)]
    theirs = peft_model.generate(input_ids=prompt, adapter_names=names, max_new_tokens=5, do_sample=False)
    ours = next(p for p in s.providers(torch.float32) if p.name == "RoAd, road_kernels")
    with ours.use(REQUESTS):
        assert torch.equal(decoding.generate(decoding.Eager(ours.model), prompt, 5)[0], theirs[:, PROMPT:])


def test_peft_is_on_our_kernels_where_it_says_so_and_only_there():
    from road_kernels.integrations import peft as road_peft

    for p in served().providers(torch.float32):
        with p.use(REQUESTS):
            assert road_peft.is_enabled() == (p.name == "RoAd, PEFT on road_kernels")
    for m in training.methods():
        with m.use():
            assert road_peft.is_enabled() == m.ours == ("road_kernels" in m.name)
    assert not road_peft.is_enabled()


def test_a_wrong_adapter_is_refused():
    s = generation.Served("tiny", "cpu", 2, PROMPT)
    s.road.theta["model.layers.1.mlp.up_proj"][1, 5] += 0.3  # one angle of one request's adapter
    axes = {"dtype": "float32", "mode": "eager", "requests": 2, "new_tokens": 2}
    with pytest.raises(ValueError, match="RoAd, road_kernels in"):
        generation.measure(s, axes, (0.0, (1, 1)))


def test_rounds_change_who_is_first_and_end_in_bounds():
    order = []
    samples = {name: (lambda name=name: order.append(name) or {"t": 1.0}) for name in "abc"}
    taken = model_runs.rounds(samples, seconds=0.0, bounds=(3, 9))
    assert "".join(order) == "abcbcacab" and all(len(t) == 3 for t in taken.values())
    assert len(model_runs.rounds({"a": lambda: {}}, seconds=60.0, bounds=(1, 4))["a"]) == 4
    assert model_runs.rounds({}, 0.0, (1, 1)) == {}


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


def test_in_place_training_keeps_no_more_than_a_plain_model_does():
    """Of the rotations nothing but their outputs, which the next operations keep or drop as they do without adapters;
    the rest is the parameters' tables."""
    base = models.converted(served().model, torch.float32)
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


def test_training_refuses_gradients_worse_than_twice_those_of_peft(monkeypatch):
    import road_kernels.integrations.peft._forward as forward

    true = forward.road_apply
    monkeypatch.setattr(forward, "road_apply", lambda x, *args, **kw: true(x * 1.001, *args, **kw))
    methods = [m for m in training.methods() if m.name in ("RoAd1, PEFT", "RoAd1, PEFT on road_kernels")]
    ids = torch.randint(256, (1, 16))
    with pytest.raises(ValueError, match="RoAd1, PEFT on road_kernels: loss or gradient is off"):
        training.errors_of(methods, served().model, torch.float32, ids)


def test_programs_run_and_report(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--results", str(tmp_path)]
    generation.main([*arguments, "--dtypes", "bfloat16", "--requests", "1,2"])
    training.main([*arguments, "--tokens", "8"])
    printed = capsys.readouterr().out
    assert "| **RoAd, road_kernels** |" in printed and "Not run: RoAd, PEFT, float32 adapters" in printed
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
        assert "Quick run" in model_report.TABLES[name](result)


@pytest.mark.parametrize(
    ("module", "argv", "expected"),
    [
        (generation, ["--device", "cpu"], {"shape": "small", "requests": [1, 2, 4, 8, 16]}),
        (generation, ["--device", "cuda", "--gpu-check"], {"shape": "7b-8", "requests": [8], "new_tokens": 8}),
        (generation, ["--device", "cuda", "--shape", "small", "--prompt", "7"], {"shape": "small", "prompt": 7}),
        (training, ["--device", "cuda"], {"shape": "7b", "dtypes": "bfloat16", "tokens": 512}),
    ],
)
def test_defaults(module, argv, expected):
    options = vars(module.parse(argv))
    assert {k: options[k] for k in expected} == expected


def test_grid_has_the_second_dtype_once_and_graphs_on_a_gpu_only():
    on_cpu = generation.grid(generation.parse(["--device", "cpu"]))
    assert [(p["dtype"], p["requests"]) for p in on_cpu] == [
        *itertools.product(["float32"], [1, 2, 4, 8, 16]),
        ("bfloat16", 8),
    ]
    assert {p["mode"] for p in on_cpu} == {"eager"}
    on_gpu = generation.grid(generation.parse(["--device", "cuda"]))
    assert {p["mode"] for p in on_gpu} == {"eager", "graph"} and {p["dtype"] for p in on_gpu} == {"bfloat16"}
