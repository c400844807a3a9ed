"""Under torch.compile, which vLLM's CPU platform turns off beside LoRA: these tests turn it on again.

What is traced is what CUDA graphs capture on a GPU: fixed calls on memory that does not move.
"""

import pytest
from support.vllm_engine import engine
from support.vllm_models import prompt


@pytest.fixture(scope="module")
def compiled(llama):
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config

    def with_compilation(vllm_config):
        original(vllm_config)
        vllm_config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(with_compilation))
        options = {"road_kernels": {"group_sizes": [64, 16], "lora": False}}
        with engine(llama, enforce_eager=False, additional_config=options) as made:
            yield made


def test_exact(compiled):
    names = ["all", None, "some", "narrow", "others"]
    for k in range(2):
        compiled.check([prompt(10 * k + j, 6 + 5 * j) for j in range(len(names))], names, 8)


def test_it_was_compiled(compiled, monkeypatch):
    """A step runs no Python of the layers."""
    from road_kernels.integrations.vllm import _layers

    compiled.check([prompt(40, 6)], ["all"], 3)
    monkeypatch.setattr(_layers, "rotate_batched", lambda *a, **kw: pytest.fail("a layer ran in Python"))
    compiled.check([prompt(41, 6)] * 2, ["all", "some"], 3)


def test_a_group_size_that_is_not_traced_is_refused(compiled):
    with pytest.raises(ValueError, match=r"group_size 128, and this server rotates by 16, 64 only.*\[16, 64, 128\]"):
        compiled.llm.llm_engine.add_lora(compiled.request("wide"))
    compiled.check([prompt(30, 6)], ["all"], 3)


def test_lora_is_refused_without_memory_for_it(compiled):
    with pytest.raises(ValueError, match="this server serves no LoRA adapters"):
        compiled.llm.llm_engine.add_lora(compiled.request("lora"))
