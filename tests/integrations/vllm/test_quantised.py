"""A base with int4 weights, and bfloat16 activations: adapters rotate its output as any other."""

import pytest
from support import vllm_int4, vllm_models
from support.vllm_engine import engine
from support.vllm_models import prompt

# Of a log-probability in bfloat16; the largest difference seen is 0.04, with an adapter and without.
TOLERANCE = 0.15


@pytest.mark.parametrize("lora", [True, False], ids=["beside LoRA", "RoAd only"])
def test_int4(llama, tmp_path, lora):
    folder = vllm_int4.make_int4(llama, tmp_path / "int4")
    names = ["all", "some", "narrow", None]
    prompts = [prompt(k, 8 + k) for k in range(len(names))]
    options = {"dtype": "bfloat16", "additional_config": {"road_kernels": {"lora": lora}}}
    with engine(folder, **options) as made:
        layers = made.manager.road_modules.rotated.values()
        assert {type(layer.base_layer.quant_method).__name__ for layer in layers} == {"CompressedTensorsLinearMethod"}
        results = made.run(prompts, names, 8)
    for tokens, name, result in zip(prompts, names, results, strict=True):
        (output,) = result.outputs
        got = [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)]
        error = {}
        for other in names:
            want = vllm_models.logprobs_of(vllm_int4.reference(llama, other), tokens, list(output.token_ids))
            error[other] = max(abs(a - b) for a, b in zip(got, want, strict=True))
        assert error[name] < TOLERANCE, error
        assert min(error[other] for other in names if other != name) > 10 * TOLERANCE, error
