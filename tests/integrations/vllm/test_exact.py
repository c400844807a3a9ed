"""Requests with different adapters in one batch against transformers with each adapter merged, on a Llama."""

import pytest
from support import vllm_models
from support.vllm_engine import TOLERANCE, engine, without_plugin
from support.vllm_models import LORA, ROAD, prompt

BUDGET, BLOCK, BLOCKS = 32, 32, 12  # tokens of a step; tokens of a block of the cache; blocks
OPTIONS = {"max_num_batched_tokens": BUDGET, "block_size": BLOCK, "num_gpu_blocks_override": BLOCKS}


@pytest.fixture(scope="module")
def llama_engine(llama):
    with engine(llama, **OPTIONS) as made:
        yield made


def test_every_adapter_and_none_in_one_batch(llama_engine):
    names = [*ROAD, None, "lora"]
    llama_engine.check([prompt(k, 5 + 3 * k) for k in range(len(names))], names, 12)


@pytest.mark.parametrize("name", [*ROAD, *LORA, None])
def test_alone(llama_engine, name):
    llama_engine.check([prompt(20, 9)], [name], 8)


def test_a_batch_without_lora_runs_none_of_its_kernels(llama_engine):
    (wrapper,) = llama_engine.manager.punica_wrapper_mapping.values()
    for names, no_lora in ((["all", None, "some"], True), (["all", "lora"], False), (["narrow"], True)):
        llama_engine.check([prompt(25 + k, 6) for k in range(len(names))], names, 3)
        assert wrapper.no_lora is no_lora
        assert [group_size for group_size, _ in wrapper.road_rows.calls] == [16 if "narrow" in names else 64]


def test_prompts_longer_than_a_step(llama_engine):
    names = ["all", None, "wide"]
    llama_engine.check([prompt(30 + k, 3 * BUDGET - 7 * k) for k in range(len(names))], names, 6)


def test_adapters_share_no_cached_prefix(llama_engine):
    shared = prompt(40, 2 * BLOCK + 5)
    for name in ("all", "others", None, "lora"):
        for repetition in range(2):
            (result,) = llama_engine.run([shared], [name], 4)
            assert result.num_cached_tokens == (2 * BLOCK if repetition else 0), name
            assert list(result.outputs[0].token_ids) == expected(llama_engine, shared, name, 4)


def expected(llama_engine, tokens, name, count):
    return vllm_models.continuation(vllm_models.merged(llama_engine.folder, name), tokens, count)[0]


def test_preempted_requests(llama_engine, monkeypatch):
    """More tokens than the cache has room for: some requests lose theirs and are computed again."""
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    original = Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *a, **kw: preempted.append(a) or original(*a, **kw))
    names = ["all", "some", None, "narrow", "lora", "others"]
    llama_engine.check([prompt(50 + k, BLOCK - 8) for k in range(len(names))], names, BLOCK + 16)
    assert preempted


def test_several_samples_of_a_prompt(llama_engine):
    tokens = prompt(60, 11)
    for name, result in zip(
        ("all", "some"),
        llama_engine.run([tokens] * 2, ["all", "some"], 10, n=3, temperature=1.0),
        strict=True,
    ):
        model = vllm_models.merged(llama_engine.folder, name)
        assert len({tuple(sample.token_ids) for sample in result.outputs}) > 1
        for sample in result.outputs:
            got = [at[token].logprob for at, token in zip(sample.logprobs, sample.token_ids, strict=True)]
            want = vllm_models.logprobs_of(model, tokens, list(sample.token_ids))
            assert got == pytest.approx(want, abs=TOLERANCE)


def test_requests_without_an_adapter_are_those_of_vllm_bit_for_bit(llama_engine):
    """The same options, in a process that does not load the plugin."""
    prompts = [prompt(70 + k, 6 + 20 * k) for k in range(3)]
    names = [None] * 3
    llama_engine.llm.reset_prefix_cache()
    assert llama_engine.bits(prompts, names, 10) == without_plugin(llama_engine.folder, OPTIONS, prompts, 10)
