"""What registering replaces in vLLM, what it checks before, and the slices of vLLM's layers."""

import logging
from types import SimpleNamespace

import pytest
import torch

from road_kernels.integrations.vllm import _versions, register


@pytest.fixture
def vllm_names():
    """The two names that are replaced, restored afterwards."""
    import vllm.lora.utils as lora_utils
    import vllm.v1.worker.lora_model_runner_mixin as mixin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_utils, "_all_lora_classes", lora_utils._all_lora_classes)
        patch.setattr(mixin, "LRUCacheWorkerLoRAManager", mixin.LRUCacheWorkerLoRAManager)
        yield lambda: (lora_utils._all_lora_classes, mixin.LRUCacheWorkerLoRAManager)


def test_the_entry_point():
    from importlib.metadata import entry_points

    (found,) = entry_points(group="vllm.general_plugins", name="road")
    assert found.load() is register


def test_registering_again_changes_nothing(vllm_names):
    register()
    before = vllm_names()
    register()
    assert vllm_names() == before
    linear = [c for c in before[0] if hasattr(c, "road_rows")]
    assert len(linear) >= 9
    assert all(c.__name__.endswith("AndRoad") for c in linear)
    assert {c.__name__ for c in before[0] if c not in linear} >= {
        "VocabParallelEmbeddingWithLoRA",
        "LogitsProcessorWithLoRA",
        "FusedMoEWithLoRA",
        "FusedMoE3DWithLoRA",
    }


def test_a_class_for_the_layers_of_one_model_is_left_alone():
    """It may return parts of the output, or lay it out in its own way."""
    from vllm.lora.layers import MergedColumnParallelLinearWithLoRA

    from road_kernels.integrations.vllm._layers import with_rotation

    class Parts(MergedColumnParallelLinearWithLoRA):
        def forward(self, input_):
            return super().forward(input_).chunk(2, -1)

    assert with_rotation(Parts) is Parts


LORA = "vllm.lora."
UNKNOWN = [
    ("utils", "_all_lora_classes", None, "_all_lora_classes is missing"),
    ("worker_manager:LRUCacheWorkerLoRAManager", "_load_adapter", lambda self, path: 0, r"takes \(self, path"),
    ("model_manager:LRUCacheLoRAModelManager", "_set_adapter_mapping", None, "_set_adapter_mapping"),
    ("layers.base_linear:BaseLinearLayerWithLoRA", "set_lora", lambda self, index: 0, "set_lora"),
    ("punica_wrapper.punica_base:PunicaWrapperBase", "__init__", lambda self: None, "_token_lora_indices"),
]


@pytest.mark.parametrize(("owner", "name", "value", "message"), UNKNOWN)
def test_a_vllm_that_is_not_known_is_left_as_it_was(vllm_names, monkeypatch, caplog, owner, name, value, message):
    import pkgutil

    before = vllm_names()
    monkeypatch.setattr(pkgutil.resolve_name(LORA + owner), name, value)
    with pytest.raises(ImportError, match=message):
        _versions.find()
    logger = logging.getLogger("vllm.road_kernels")
    logger.addHandler(caplog.handler)  # vLLM's loggers do not propagate to the root
    try:
        register()
    finally:
        logger.removeHandler(caplog.handler)
    assert "RoAd adapters are not available" in caplog.text
    monkeypatch.undo()
    assert vllm_names() == before


# ---- slices, for ranks that this machine does not have


def qkv(rank: int, ranks: int, heads: int, kv_heads: int, head_size: int):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    layer = object.__new__(QKVParallelLinear)
    replicas = max(1, ranks // kv_heads)
    own = heads // ranks, max(1, kv_heads // ranks)
    layer.__dict__.update(
        tp_rank=rank,
        tp_size=ranks,
        total_num_heads=heads,
        total_num_kv_heads=kv_heads,
        num_kv_head_replicas=replicas,
        head_size=head_size,
        v_head_size=head_size,
        output_sizes=[ranks * head_size * n for n in (own[0], own[1], own[1])],
    )
    return layer


@pytest.mark.parametrize(("ranks", "heads", "kv_heads"), [(1, 4, 2), (2, 4, 2), (4, 8, 2), (2, 6, 6)])
def test_shards_of_qkv(ranks, heads, kv_heads):
    """Every feature is on as many ranks as share its head, next to those that vLLM's own shard has."""
    from road_kernels.integrations.vllm._slices import cut, slices_of

    size = 8
    row = torch.arange((heads + 2 * kv_heads) * size)[None]
    q, k, v = row.split([heads * size, kv_heads * size, kv_heads * size], 1)
    for rank in range(ranks):
        got = cut(row, slices_of(qkv(rank, ranks, heads, kv_heads, size)))
        kv_rank, kv_ranks = rank // max(1, ranks // kv_heads), min(ranks, kv_heads)
        want = [q.chunk(ranks, 1)[rank], k.chunk(kv_ranks, 1)[kv_rank], v.chunk(kv_ranks, 1)[kv_rank]]
        assert torch.equal(got, torch.cat(want, 1))


def test_ranges_leave_out_what_is_not_whole_groups():
    from road_kernels.integrations.vllm._slices import Slice, rotated_ranges

    q, k, v = Slice(256, 256, 0), Slice(64, 64, 0), Slice(128, 128, 0)
    assert rotated_ranges((q, k, v), 64) == ((0, 448),)
    assert rotated_ranges((q, k, v), 128) == ((0, 256), (320, 448))
    assert rotated_ranges((k, q), 256) == ((64, 320),)
    assert rotated_ranges((k,), 128) == ()


def test_layers_that_cannot_be_rotated():
    from vllm.lora.layers import ColumnParallelLinearWithLoRA, FusedMoEWithLoRA
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    from road_kernels.integrations.vllm._layers import with_rotation
    from road_kernels.integrations.vllm._modules import why_not

    class Parts(ColumnParallelLinear):
        def forward(self, input_):
            return super().forward(input_).chunk(2, -1)

    def layer(kind=ColumnParallelLinear, **base):
        made, own = object.__new__(with_rotation(ColumnParallelLinearWithLoRA)), object.__new__(kind)
        for module in (made, own):
            torch.nn.Module.__init__(module)
        defaults = {"skip_bias_add": False, "gather_output": False, "tp_rank": 0, "tp_size": 1, "output_size": 8}
        own.__dict__.update(defaults | base)
        made.base_layer, made.tp_size, made.n_slices = own, own.tp_size, 1
        return made

    assert why_not(layer(), ["a"]) is None
    assert why_not(layer(skip_bias_add=True), ["a"]) is None
    assert "bias is added later" in why_not(layer(skip_bias_add=True, bias=torch.zeros(8)), ["a"])
    assert "one of 2 layers in a packed one of 1 slices" in why_not(layer(), ["a", "b"])
    assert "computes its output in its own way (Parts)" in why_not(layer(Parts), ["a"])
    assert "mixture of experts (FusedMoEWithLoRA)" in why_not(object.__new__(FusedMoEWithLoRA), ["a"])


def test_two_names_of_one_layer_are_refused():
    """As a model whose names vLLM maps to its own may have them."""
    from road_kernels.integrations.vllm._modules import Modules

    modules = object.__new__(Modules)
    modules.__dict__.update(targets={"b": None}, _elsewhere=(), _skipped=("mtp.",))
    modules._mapper = SimpleNamespace(_map_name=lambda name: name.replace("a.", ""))
    assert modules.renamed(["a.b", "mtp.c"]) == {"b": "a.b"}
    with pytest.raises(ValueError, match=r"layers 'a\.b' and 'b' of the adapter are both 'b'"):
        modules.renamed(["a.b", "b"])


def test_names_that_are_found_in_a_folder(tmp_path):
    import asyncio

    from road_kernels import Adapter
    from road_kernels.integrations.vllm._resolver import RoadResolver

    adapter = Adapter({"q": (torch.rand(32), torch.rand(32))})
    for name, base in (("ours", "model"), ("others", "another"), ("inner/deep", "model"), ("../outside", "model")):
        adapter.save(tmp_path / "adapters" / name, base_model=base)
    resolver = RoadResolver(str(tmp_path / "adapters"))

    def find(name):
        return asyncio.run(resolver.resolve_lora("model", name))

    assert find("ours").lora_path == str(tmp_path / "adapters" / "ours")
    for name in ("others", "nobody", "inner/deep", "../outside", str(tmp_path / "adapters" / "ours"), "..", ".", ""):
        assert find(name) is None, name
