"""One batch of requests with different adapters against transformers with each merged, on a Llama."""

import pytest
from support.vllm_engine import engine
from support.vllm_models import LORA, ROAD, prompt


@pytest.fixture(scope="module")
def llama_engine(llama):
    with engine(llama, max_num_batched_tokens=32, block_size=32) as made:
        yield made


def test_every_adapter_and_none_in_one_batch(llama_engine):
    names = [*ROAD, None, "lora"]
    llama_engine.check([prompt(k, 5 + 3 * k) for k in range(len(names))], names, 12)


@pytest.mark.parametrize("name", [*ROAD, *LORA, None])
def test_alone(llama_engine, name):
    llama_engine.check([prompt(20, 9)], [name], 8)
