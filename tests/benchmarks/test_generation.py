"""Generation with whole models in benchmarks/: every provider computes the same thing, in every way it is timed."""

import contextlib
import functools
import itertools
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="the models of these benchmarks are transformers'")
pytest.importorskip("peft", reason="these benchmarks compare with PEFT")

from benchmarks import generation, training
from benchmarks.baselines import models, serving
from benchmarks.baselines.training_methods import methods
from benchmarks.harness import decoding
from benchmarks.harness.accuracy import row_error

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
    assert len(errors) == 8
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
    ours = next(p for p in s.providers(torch.float32) if p.name == "RoAd, AdapterBank")
    with ours.use(REQUESTS):
        assert torch.equal(decoding.generate(decoding.Eager(ours.model), prompt, 5)[0], theirs[:, PROMPT:])


@pytest.fixture
def graphs_on_the_host(monkeypatch):
    """torch.cuda's graphs as far as decoding.Static uses them: a replay does the step again, into the same memory."""
    alive = {}

    class Graph:
        replays = 0

        def replay(self):
            Graph.replays += 1
            alive["decoder"].logits.copy_(alive["decoder"]._decode())

    capture = decoding.Static._capture

    def captured(self):
        alive["decoder"] = self
        capture(self)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(decoding.Static, "_capture", captured)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda g: contextlib.nullcontext())
    return Graph


def test_the_served_model_shares_the_weights_of_the_others():
    s = served()
    providers = {p.name: p.model for p in s.providers(torch.bfloat16)}
    packed = providers["RoAd, served"].served.model.layers[0].qkv_proj.weight
    assert providers["no adapter, served"] is providers["RoAd, served"]
    for name in ("no adapter", "LoRA rank 8, PEFT"):
        weight = models.adapted(providers[name])["model.layers.0.self_attn.q_proj"]
        weight = getattr(weight, "base_layer", weight).weight
        assert weight.data_ptr() == packed.data_ptr(), name


def test_served_is_compared_with_the_served_model_without_adapters():
    axes = {"dtype": "float32", "mode": "eager", "requests": 2, "new_tokens": 2}
    rows = {r["provider"]: r for r in generation.measure(served(), axes, (0.0, (2, 2)))}
    base, road = rows["no adapter, served"], rows["RoAd, served"]
    assert base["of_base_served"] == 1 and road["of_base_served"] > 0
    assert base["error"] < 1e-5 and road["error"] < 1e-5


def test_steps_replay_one_graph_from_the_first_token_on(graphs_on_the_host):
    s = served()
    base = s.providers(torch.float32)[0].model
    prompt = s.tokens[:, :PROMPT]
    want = decoding.generate(decoding.Eager(base), prompt, 5)[0]
    decoder = decoding.Static(base, REQUESTS, PROMPT + 5, capture=True)
    for _ in range(2):
        assert torch.equal(decoding.generate(decoder, prompt, 5)[0], want)
    assert graphs_on_the_host.replays == 2 * 4  # the first token comes of the prompt


def test_what_cannot_be_captured_is_not_run_in_a_graph_and_says_why(graphs_on_the_host):
    axes = {"dtype": "float32", "mode": "graph", "requests": 2, "new_tokens": 2}
    providers = {p.name: p for p in served().providers(torch.float32)}
    rows = {r["provider"]: r for r in generation.measure(served(), axes, (0.0, (0, 0)))}
    assert rows.keys() == providers.keys()
    for name in ("RoAd, PEFT", "LoRA rank 8, PEFT"):
        assert rows[name]["error"] is None and "copied to the device" in rows[name]["note"]
    captured = ("no adapter", "no adapter, served", "RoAd, served", "RoAd, AdapterBank", "RoAd, PEFT on road_kernels")
    for name in (*captured, "LoRA rank 8, bmm"):
        assert rows[name]["error"] < 1e-5 and rows[name]["note"] is None


def test_peft_is_on_our_kernels_where_it_says_so_and_only_there():
    from road_kernels.integrations import peft as road_peft

    for p in served().providers(torch.float32):
        with p.use(REQUESTS):
            assert road_peft.is_enabled() == (p.name == "RoAd, PEFT on road_kernels")
    for m in methods():
        with m.use():
            assert road_peft.is_enabled() == m.ours == ("road_kernels" in m.name)
    assert not road_peft.is_enabled()


def test_a_wrong_adapter_is_refused():
    s = generation.Served("tiny", "cpu", 2, PROMPT)
    s.road.theta["model.layers.1.mlp.up_proj"][1, 5] += 0.3  # one angle of one request's adapter
    axes = {"dtype": "float32", "mode": "eager", "requests": 2, "new_tokens": 2}
    with pytest.raises(ValueError, match="RoAd, served in"):
        generation.measure(s, axes, (0.0, (1, 1)))


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
