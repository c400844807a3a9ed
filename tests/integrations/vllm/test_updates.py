"""New values for adapters that are being served, through collective_rpc."""

import pytest
import torch
from support import vllm_models
from support.vllm_engine import TOLERANCE, check_result, engine
from support.vllm_models import prompt

from road_kernels import Adapter
from road_kernels.integrations.vllm import pack

EXTENSION = "road_kernels.integrations.vllm.RoadWorker"


@pytest.fixture(scope="module")
def served(llama):
    with engine(llama, worker_extension_cls=EXTENSION, max_loras=3, max_cpu_loras=3) as made:
        yield made


@pytest.fixture(scope="module")
def trained(llama):
    """What a step of training has made of the adapter "all", of the three layers of the attention's input only."""
    torch.manual_seed(1)
    adapter = Adapter.from_peft(llama / "all")
    layers = {n: (t + 0.4 * torch.randn_like(t), a * 1.1) for n, (t, a) in adapter.layers.items() if ".k_proj" in n}
    Adapter({**adapter.layers, **layers}, adapter.variant, adapter.group_size).save(llama / "trained")
    return layers


def update(served, *arguments) -> None:
    served.llm.collective_rpc("update_road_adapter", args=arguments)


def restored(served) -> None:
    update(served, "all", Adapter.from_peft(served.folder / "all"))
    served.llm.reset_prefix_cache()


def switched(before, after, tokens: list[int], switch: int, count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens of one model that another takes over after ``switch`` tokens, on the keys and values so far."""
    sequence, logprobs, cache = list(tokens), [], None
    with torch.inference_mode():
        for k in range(count):
            model = before if k < switch else after
            out = model(torch.tensor([sequence[-1:] if cache else sequence]), past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1].log_softmax(-1)
            logprobs.append(row.max().item())
            sequence.append(row.argmax().item())
    return sequence[len(tokens) :], logprobs


def test_the_next_step_uses_new_values(served, trained):
    """A running request goes on with them; another adapter's and one without an adapter do not notice."""
    core, count, switch = served.llm.llm_engine, 10, 4
    prompts = {name: prompt(k, 6 + k) for k, name in enumerate(("all", "some", "base"))}
    for name, tokens in prompts.items():
        request = None if name == "base" else served.request(name)
        core.add_request(name, {"prompt_token_ids": tokens}, served.sampling(count), lora_request=request)
    done = {}
    for step in range(count + 3):
        if step == switch:
            update(served, "all", pack(trained))
        done |= {output.request_id: output.outputs[0] for output in core.step() if output.finished}
    assert not core.has_unfinished_requests()
    before, after = (vllm_models.merged(served.folder, name) for name in ("all", "trained"))
    tokens, logprobs = switched(before, after, prompts["all"], switch, count)
    assert list(done["all"].token_ids) == tokens
    got = [at[token].logprob for at, token in zip(done["all"].logprobs, tokens, strict=True)]
    assert got == pytest.approx(logprobs, abs=TOLERANCE)
    assert tokens != vllm_models.continuation(before, prompts["all"], count)[0]
    check_result(served.folder, prompts["some"], "some", done["some"])
    check_result(served.folder, prompts["base"], None, done["base"])
    restored(served)


@pytest.mark.parametrize("after", ["narrow", "lora"])
def test_replaced_while_a_request_runs(served, after):
    """By an adapter of another group_size, or of the other kind: same batch, same slot, other calls."""
    from vllm.lora.request import LoRARequest

    core, count, switch, number = served.llm.llm_engine, 8, 4, 77
    tokens = prompt(50, 6)
    first, second = (str(served.folder / name) for name in ("some", after))
    core.add_request(
        "replaced",
        {"prompt_token_ids": tokens},
        served.sampling(count),
        lora_request=LoRARequest("replaced", number, first),
    )
    done = []
    for step in range(count + 3):
        if step == switch:
            core.add_lora(LoRARequest("replaced", number, second, load_inplace=True))
        done += [output.outputs[0] for output in core.step() if output.finished]
    want, _ = switched(*(vllm_models.merged(served.folder, name) for name in ("some", after)), tokens, switch, count)
    assert [list(output.token_ids) for output in done] == [want]
    core.remove_lora(number)
    core.reset_prefix_cache()


@pytest.mark.parametrize("form", ["adapter", "mapping", "tables", "bytes"])
def test_forms(served, trained, form):
    import road_kernels as rk

    served.check([prompt(10, 5)], ["all"], 2)
    if form == "adapter":
        update(served, "all", Adapter(trained, "road_1", 64))
    elif form == "mapping":
        update(served, served.request("all").lora_int_id, trained)
    elif form == "tables":
        update(served, "all", {name: rk.road_tables(*pair) for name, pair in trained.items()}, "table")
    else:
        update(served, "all", pack(Adapter(trained)))
    served.llm.reset_prefix_cache()
    result = served.run([prompt(11, 7)], ["all"], 5)[0]
    check_result(served.folder, prompt(11, 7), "all", result.outputs[0], vllm_models.merged(served.folder, "trained"))
    restored(served)


def test_values_outlive_eviction_from_a_slot(served, trained):
    """The adapter goes back to a slot from vLLM's memory on the host, not from its file."""
    served.check([prompt(20, 5)], ["all"], 2)
    update(served, "all", pack(trained))
    manager, number = served.manager, served.request("all").lora_int_id
    manager.deactivate_adapter(number)
    served.check([prompt(21, 5)] * 2, ["some", "others"], 2)
    assert number not in manager.lora_index_to_id
    assert number in manager.list_adapters()
    served.llm.reset_prefix_cache()
    result = served.run([prompt(22, 7)], ["all"], 4)[0]
    check_result(served.folder, prompt(22, 7), "all", result.outputs[0], vllm_models.merged(served.folder, "trained"))
    restored(served)


def test_what_is_refused_is_not_written(served, trained):
    served.check([prompt(30, 5)], ["all"], 2)
    name, (theta, alpha) = next(iter(trained.items()))
    for layers, error, message in (
        ({name: (theta, alpha * float("inf"))}, ValueError, "has a NaN, an infinity"),
        ({name: (theta[:32], alpha[:32])}, ValueError, "features wide in the model"),
        ({"model.layers.9.mlp.up_proj": (theta, alpha)}, ValueError, "no linear layers"),
        (Adapter(trained, "road_1", 32), ValueError, "has group_size 64, got 32"),
        (b"nothing", ValueError, "must be bytes that"),
    ):
        with pytest.raises(error, match=message):
            update(served, "all", layers)
    with pytest.raises(KeyError, match=r"no RoAd adapter 'nobody' is loaded; those that are: .*'all'"):
        update(served, "nobody", trained)
    served.llm.reset_prefix_cache()
    served.check([prompt(31, 6)], ["all"], 4)
