"""Loading, replacing, evicting and pinning adapters, and checkpoints that are refused while vLLM goes on serving."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import vllm_models
from support.vllm_engine import check_result, engine
from support.vllm_models import prompt

SLOTS, IN_MEMORY = 2, 4


@pytest.fixture(scope="module")
def small(qwen2):
    """A Qwen2, whose q, k and v have a bias, with fewer slots than adapters."""
    with engine(qwen2, max_loras=SLOTS, max_cpu_loras=IN_MEMORY) as made:
        yield made


@pytest.fixture
def folder(qwen2, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(qwen2 / "all", tmp_path / "adapter")


def request(engine, folder, name="loaded", **options):
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, engine._ids.setdefault(name, 100 + len(engine._ids)), str(folder), **options)


def add(engine, folder, name="refused", **options) -> None:
    engine.llm.llm_engine.add_lora(request(engine, folder, name, **options))


def test_more_adapters_than_slots(small):
    """In turn, so that each takes the slot of another: RoAd's after LoRA's, LoRA's after RoAd's."""
    for k, name in enumerate(["all", "lora", "some", "others", "lora", "narrow", "all", None, "lora_2", "wide"]):
        small.check([prompt(k, 7)], [name], 4)
    assert len(small.manager.list_adapters()) == IN_MEMORY


def test_more_adapters_than_slots_at_once(small):
    """The scheduler runs as many at a time as there are slots."""
    names = ["all", "some", "others", "narrow", "wide", None]
    small.check([prompt(20 + k, 6 + k) for k in range(len(names))], names, 6)


def test_slots_that_were_used_are_the_identity_again(small):
    """An adapter of some layers after one of all of them."""
    small.llm.llm_engine.reset_prefix_cache()
    for name in ("all", "narrow", "some", "others"):
        small.check([prompt(30, 8)], [name], 5)


def test_pinned_adapters_stay(small):
    core = small.llm.llm_engine
    small.check([prompt(40, 5)], ["some"], 2)
    core.pin_lora(small.request("some").lora_int_id)
    for name in ("all", "others", "narrow", "lora", "wide"):
        small.check([prompt(41, 5)], [name], 2)
    assert small.request("some").lora_int_id in small.manager.lora_index_to_id
    core.remove_lora(small.request("some").lora_int_id)
    assert small.request("some").lora_int_id not in small.manager.list_adapters()
    small.check([prompt(42, 5)], ["some"], 2)


@pytest.mark.parametrize(
    ("before", "after"), [("all", "some"), ("all", "narrow"), ("lora", "wide"), ("others", "lora")]
)
def test_replaced_in_place(small, qwen2, before, after):
    """The same name and id, other weights: of another group_size, or of the other kind."""
    tokens = prompt(50, 7)
    name = f"{before} to {after}"
    for source in (before, after):
        small.llm.llm_engine.reset_prefix_cache()
        add(small, qwen2 / source, name, load_inplace=True)
        (result,) = small.llm.generate(
            [{"prompt_token_ids": tokens}],
            small.sampling(6),
            lora_request=[request(small, qwen2 / source, name)],
            use_tqdm=False,
        )
        check_result(qwen2, tokens, source, result.outputs[0])


def spoil(folder, change) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def renamed(old: str, new: str):
    def change(weights):
        for key in [k for k in weights if old in k]:
            weights[key.replace(old, new)] = weights.pop(key)

    return change


def not_finite(weights) -> None:
    weights[next(k for k in weights if "layers.1.self_attn.v_proj.road_alpha" in k)][3] = float("nan")


def too_narrow(weights) -> None:
    for key in [k for k in weights if "layers.0.mlp.down_proj" in k]:
        weights[key] = weights[key][:64].clone()


def without_alpha(weights) -> None:
    del weights[next(k for k in weights if "road_alpha" in k)]


def reconfigured(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED = {
    "another layer": (renamed("layers.1.mlp.down_proj", "layers.7.mlp.down_proj"), r"no linear layers .*layers\.7"),
    "the logits": (renamed("model.layers.1.mlp.down_proj", "lm_head"), r"'lm_head' cannot have a RoAd adapter"),
    "the embedding": (renamed("layers.1.mlp.down_proj", "embed_tokens"), r"embed_tokens' cannot have a RoAd adapter"),
    "a NaN": (not_finite, r"layers\.1\.self_attn\.v_proj' has a NaN"),
    "another width": (too_narrow, r"down_proj' is 256 features wide in the model, got 128"),
    "half a layer": (without_alpha, r"has no road_alpha of layer"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_weights_that_are_refused(small, folder, change):
    spoil(folder, REFUSED[change][0])
    with pytest.raises(ValueError, match=REFUSED[change][1]):
        add(small, folder)
    assert "refused" not in {getattr(m, "name", None) for m in small.manager.list_adapters().values()}
    small.check([prompt(60, 6)] * 3, ["some", None, "wide"], 3)


def test_configurations_that_are_refused(small, folder):
    reconfigured(folder, group_size=7)
    with pytest.raises(ValueError, match="group_size must be an even int"):
        add(small, folder)
    reconfigured(folder, group_size=64, variant="road_3")
    with pytest.raises(ValueError, match="variant must be"):
        add(small, folder)


def test_files_that_are_missing_or_damaged(small, folder, tmp_path):
    from vllm.exceptions import LoRAAdapterNotFoundError

    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        add(small, folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        add(small, folder)
    with pytest.raises(LoRAAdapterNotFoundError):
        add(small, tmp_path / "nowhere")
    small.check([prompt(61, 6)], ["others"], 3)


def test_nothing_moves(small):
    """CUDA graphs hold the addresses of tables and ids."""
    manager = small.manager
    layers = manager.road_modules.rotated.values()

    def addresses():
        rows = [w.road_rows for w in manager.punica_wrapper_mapping.values()]
        ids = [t for r in rows for t in r._ids.values()]
        return [t.data_ptr() for t in ids] + [t.data_ptr() for m in layers for t in (m.road_r1, m.road_r2)]

    small.check([prompt(70, 6)] * 2, ["all", "narrow"], 2)
    before = addresses()
    small.check([prompt(71, 6)] * 3, ["some", "narrow", None], 2)
    assert addresses() == before
    assert all(m.road_r1.dtype == torch.float32 for m in layers)


def test_merged_by_peft_differs(qwen2):
    """The comparison would see an adapter that does nothing."""
    tokens = prompt(20, 9)
    found = {
        tuple(vllm_models.continuation(vllm_models.merged(qwen2, name), tokens, 8)[0]) for name in vllm_models.ROAD
    }
    assert len(found) == len(vllm_models.ROAD)
