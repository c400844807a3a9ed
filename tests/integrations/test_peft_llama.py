"""A tiny Llama of transformers with random weights, with PEFT on the kernels."""

import copy
import filecmp

import peft
import pytest
import torch
import transformers.integrations.peft
from packaging.version import Version
from peft import PeftModel, get_peft_model
from support.backends import DEVICE
from support.peft_models import first, layers, randomize
from support.tiny_llama import adapter, tiny_llama

from road_kernels.integrations import peft as road_peft

NAMES = ["A", "__base__", "B", "C", "A"]


def with_adapters(dtype=torch.float32):
    model = get_peft_model(tiny_llama(dtype), adapter("road_1", 16), adapter_name="A")
    model.add_adapter("B", adapter("road_4", 16))
    model.add_adapter("C", adapter("road_2", 2))
    return randomize(model)


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 64, (len(NAMES), 6), generator=generator, device="cpu").to(DEVICE)


def generate(model, prompts, **kwargs):
    mask = torch.ones_like(prompts)
    return model.generate(
        input_ids=prompts, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, **kwargs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generate_with_mixed_adapters_is_what_each_gives_alone(prompts, dtype):
    model = with_adapters(dtype).eval()
    with road_peft.enabled():
        mixed = generate(model, prompts, adapter_names=NAMES)
        alone = {}
        for name in "ABC":
            model.set_adapter(name)
            alone[name] = generate(model, prompts)
        with model.disable_adapter():
            alone["__base__"] = generate(model, prompts)
    for row, name in enumerate(NAMES):
        assert torch.equal(mixed[row], alone[name][row]), name
    assert len({tuple(t[0].tolist()) for t in alone.values()}) == 4  # the adapters differ


def test_enable_and_disable_between_tokens(prompts):
    model = with_adapters().eval()
    want = generate(model, prompts, adapter_names=NAMES)
    tokens, past = prompts, None
    for step in range(8):
        (road_peft.enable if step % 2 else road_peft.disable)()
        with torch.no_grad():
            fed = tokens if past is None else tokens[:, -1:]
            out = model(input_ids=fed, past_key_values=past, use_cache=True, adapter_names=NAMES)
        past = out.past_key_values
        tokens = torch.cat((tokens, out.logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    road_peft.disable()
    assert torch.equal(tokens, want)


def train(model, prompts, steps=4):
    model.set_adapter("A")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=prompts, labels=prompts).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_follows_peft_in_float64(prompts):
    start = with_adapters()
    exact = train(copy.deepcopy(start).double(), prompts)
    assert exact[-1] < exact[0] - 0.01
    for checkpointing in (False, True):
        model = copy.deepcopy(start)
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        with road_peft.enabled():
            assert train(model, prompts) == pytest.approx(exact, rel=1e-4)


def test_checkpoints_are_the_files_that_peft_writes(tmp_path, prompts):
    model = with_adapters().eval()
    with torch.no_grad():
        want = model(prompts).logits
    model.save_pretrained(tmp_path / "theirs")
    with road_peft.enabled():
        with torch.no_grad():
            model(prompts, adapter_names=NAMES)
        model.save_pretrained(tmp_path / "ours")
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "theirs" / "A", adapter_name="A").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(prompts).logits, want, rtol=1e-4, atol=1e-4)
    files = [p.relative_to(tmp_path / "theirs") for p in (tmp_path / "theirs").rglob("*") if p.is_file()]
    assert len([f for f in files if f.suffix == ".safetensors"]) == 3
    matching, different, missing = filecmp.cmpfiles(tmp_path / "theirs", tmp_path / "ours", files, shallow=False)
    assert not different and not missing
    assert len(matching) == len(files)


def test_compile(prompts):
    model = with_adapters().eval()
    torch._dynamo.reset()
    ops = []

    def backend(graph, _):
        ops.append(sum(str(n.target) == "road_kernels.rotate.default" for n in graph.graph.nodes))
        return graph

    compiled = torch.compile(model, backend=backend)
    with road_peft.enabled():
        want = model(prompts).logits
        torch.testing.assert_close(compiled(prompts).logits, want, rtol=1e-5, atol=1e-5)
        assert sum(ops) == len(layers(model)) == 14
        with torch.no_grad():
            first(model).road_theta["A"].add_(0.5)
        torch.testing.assert_close(compiled(prompts).logits, model(prompts).logits, rtol=1e-5, atol=1e-5)


def test_compiling_block_by_block(prompts):
    """One graph serves all blocks, forward and backward, and no graph breaks at a RoAd layer."""
    model = with_adapters().train()
    model.enable_input_require_grads()  # or the first block would need a graph of its own
    with road_peft.enabled():
        want = model(prompts, labels=prompts, use_cache=False).loss
        want.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        for block in model.model.model.layers:
            block.compile(fullgraph=True, backend="aot_eager")
        loss = model(prompts, labels=prompts, use_cache=False).loss
        loss.backward()
    torch.testing.assert_close(loss, want)
    got = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(got) == len(gradients) == 28
    for g, w in zip(got, gradients, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_adapter_deleted_and_another_added_under_its_name(prompts):
    model = with_adapters().eval()
    with road_peft.enabled(), torch.no_grad():
        before = model(prompts, adapter_names=NAMES).logits
        model.delete_adapter("B")
        with pytest.raises(ValueError, match="non-existing adapter"):
            model(prompts, adapter_names=NAMES)
        model.add_adapter("B", adapter("road_2", 2))
        randomize(model)
        after = model(prompts, adapter_names=NAMES).logits
        model.set_adapter("B")
        alone = model(prompts).logits
    torch.testing.assert_close(after[2], alone[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-2)


def test_adapters_that_transformers_adds(prompts, tmp_path, monkeypatch):
    """model.add_adapter and load_adapter, without a PeftModel. They ask for PEFT 0.22, which 0.21 is near enough to."""
    if Version(peft.__version__) < Version("0.21"):
        pytest.skip("transformers' own integration asks for PEFT 0.22")
    monkeypatch.setattr(transformers.integrations.peft, "check_peft_version", lambda **_: None)
    model = tiny_llama().eval()
    for name, config in (("A", adapter("road_1", 16)), ("B", adapter("road_4", 2))):
        model.add_adapter(config, name)
    randomize(model)
    model.set_adapter("B")
    want = model(prompts).logits
    model.save_pretrained(tmp_path)
    with road_peft.enabled():
        torch.testing.assert_close(model(prompts).logits, want, rtol=1e-4, atol=1e-4)
        loaded = tiny_llama().eval()
        loaded.load_adapter(tmp_path, adapter_name="B")
        torch.testing.assert_close(loaded(prompts).logits, want, rtol=1e-4, atol=1e-4)
        loaded.disable_adapters()
        assert torch.equal(loaded(prompts).logits, tiny_llama().eval()(prompts).logits)
