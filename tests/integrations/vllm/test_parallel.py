"""Tensor parallelism: two processes give the tokens of one."""

import os

import pytest
import torch
from support import vllm_models
from support.vllm_engine import Engine, check_result
from support.vllm_models import ROAD, prompt

from road_kernels import Adapter
from road_kernels.integrations.vllm import pack

EXTENSION = "road_kernels.integrations.vllm.RoadWorker"


@pytest.fixture(scope="module", params=[2, 1], ids=["kv heads cut", "kv heads replicated"])
def pair(request, tmp_path_factory):
    """Two ranks, of which each has one of two heads of k and v, or the only one."""
    folder = vllm_models.make_models(
        tmp_path_factory.mktemp("parallel"), "llama", num_key_value_heads=request.param, head_dim=64
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        made = Engine(folder, tensor_parallel_size=2, distributed_executor_backend="mp", worker_extension_cls=EXTENSION)
        try:
            yield made
        finally:
            made.llm.llm_engine.engine_core.shutdown()


def test_exact(pair):
    names = [*ROAD, None, "lora"]  # "wide" rotates q, o, gate and up; no part of k and v on a rank is so wide
    pair.check([prompt(k, 6 + 4 * k) for k in range(len(names))], names, 8)


def test_new_values(pair):
    pair.check([prompt(20, 6)], ["some"], 2)
    adapter = Adapter.from_peft(pair.folder / "some")
    layers = {name: (theta * 0.5, alpha) for name, (theta, alpha) in adapter.layers.items()}
    Adapter(layers, adapter.variant, adapter.group_size).save(pair.folder / "half")
    pair.llm.collective_rpc("update_road_adapter", args=("some", pack(layers)))
    pair.llm.reset_prefix_cache()
    result = pair.run([prompt(21, 7)], ["some"], 6)[0]
    check_result(pair.folder, prompt(21, 7), "some", result.outputs[0], vllm_models.merged(pair.folder, "half"))


def test_groups_on_two_ranks_are_refused(pair):
    layer = "model.layers.0.self_attn.q_proj"
    Adapter({layer: (torch.rand(128), torch.rand(128))}, "road_1", 256).save(pair.folder / "whole")
    with pytest.raises(Exception, match=f"{layer}' has 128 features of its 256 on a rank"):
        pair.llm.llm_engine.add_lora(pair.request("whole"))
    pair.check([prompt(30, 6)], ["all"], 3)
