"""What the ranks of the FSDP2 tests do: PEFT models under fully_shard, beside the same model in one process."""

import copy

import torch
from support.peft_models import first, layers, make_model
from support.problems import make_x
from support.sharded import loss, mesh, refusal, whole
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from road_kernels.integrations import peft as road_peft


def shard(model, each: str, **kwargs):
    """fully_shard of the model, and before that of each RoAd layer, or of each base layer in it."""
    on = mesh(2)
    for layer in layers(model):
        if each != "model":
            fully_shard(layer if each == "layer" else layer.base_layer, mesh=on, **kwargs)
    return fully_shard(model, mesh=on, **kwargs)


def step(model, x, run=None):
    """The output, the gradient of x, and those of the parameters. Every rank has the same x: means are exact."""
    x = x.clone().requires_grad_()
    z = (run or model)(x)
    loss(z).backward()
    return [z.detach(), x.grad, *(whole(p.grad) for p in model.parameters() if p.requires_grad)]


def check_step(rank, each, inplace, variant="road_1", shape=(3, 5, 16)):
    model, x = make_model((variant, 64), ("road_2", 64)), make_x(*shape)
    one = copy.deepcopy(model)
    with road_peft.enabled(inplace=inplace):
        got, want = step(shard(model, each), x), step(one, x)
    for mine, theirs in zip(got, want, strict=True):
        if inplace:  # where it is not allowed, the gradients come from the input instead of the output
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(mine, theirs)


def check_policies(rank, how):
    """Mixed precision, CPU offload, activation checkpointing, compile, one forward with two adapters, a mixed batch."""
    model, x = make_model(("road_1", 64), ("road_4", 64)), make_x(4, 5, 16)
    one, kwargs, each, run, tolerance = copy.deepcopy(model), {}, "layer", None, 0.0
    if how == "mixed precision":
        kwargs["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        one, tolerance = one.to(torch.bfloat16), 2**-6
    elif how == "cpu offload":
        kwargs["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    elif how == "checkpointing":
        run = lambda x: checkpoint(model, x, use_reentrant=False)  # noqa: E731
    elif how == "compile":
        each = "model"
        for layer in layers(model):
            layer.compile(backend="aot_eager")
    elif how == "two adapters":
        for m in (model, one):
            m.base_model.set_adapter(["A", "B"])
    names = {"adapter_names": ["B", "A", "__base__", "B"]} if how == "mixed batch" else {}
    if names:
        run = lambda x: model(x, **names)  # noqa: E731
        for m in (model, one):
            m.train(False)
    with road_peft.enabled(inplace=how == "checkpointing"):
        shard(model, each, **kwargs)
        got = step(model, x.to(torch.bfloat16) if tolerance else x, run)
        want = step(one, x.to(torch.bfloat16) if tolerance else x, (lambda x: one(x, **names)) if names else None)
    for mine, theirs in zip(got, want, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=0, atol=max(tolerance, 1e-5) * scale)


def check_merge(rank, each, group_size, inplace, safe):
    """The weights of one process to the last bit, in FSDP's own memory; forward, unmerge and train go on."""
    model, x = make_model(("road_2", group_size), width=128), make_x(3, 5, 16)
    one = copy.deepcopy(model)
    with road_peft.enabled(inplace=inplace):
        shard(model, each)
        memory = [p.to_local().data_ptr() for p in model.parameters()]
        for m in (model, one):
            m.merge_adapter(safe_merge=safe)
        for mine, theirs in zip(model.parameters(), one.parameters(), strict=True):
            assert torch.equal(whole(mine), theirs)
        assert memory == [p.to_local().data_ptr() for p in model.parameters()]
        with torch.no_grad():
            assert torch.equal(model(x), one(x))
        model.reshard()
        for m in (model, one):
            m.unmerge_adapter()
        for mine, theirs in zip(model.parameters(), one.parameters(), strict=True):
            assert torch.equal(whole(mine), theirs)
        for mine, theirs in zip(step(model, x), step(one, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def check_refused_merges(rank):
    """While FSDP has gathered the weights, and of an adapter that cannot be unmerged: nothing is written."""
    with road_peft.enabled():
        model = shard(make_model(("road_1", 64)), "model")
        model(make_x(3, 16))  # the root stays gathered until its backward
        before = first(model).base_layer.weight.clone()
        assert "call reshard() of the FSDP modules first" in refusal(model.merge_adapter)
        assert torch.equal(first(model).base_layer.weight, before) and not first(model).merged_adapters
        model.reshard()
        model.merge_adapter()
        with torch.no_grad():
            first(model).road_alpha["A"].zero_()
        before = whole(first(model).base_layer.weight)
        assert "cannot unmerge adapter A" in refusal(first(model).unmerge)
        assert torch.equal(whole(first(model).base_layer.weight), before) and first(model).merged_adapters == ["A"]
        model = shard(make_model(("road_1", 64)), "model")
        with torch.no_grad():
            first(model).road_alpha["A"].fill_(float("nan"))
        assert "NaNs detected" in refusal(lambda: model.merge_adapter(safe_merge=True))


def check_base_not_sharded(rank):
    """fully_shard with ignored base weights: plain weights, sharded parameters of the adapter."""
    model = make_model(("road_1", 64))
    one = copy.deepcopy(model)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    with road_peft.enabled():
        fully_shard(model, mesh=mesh(2), ignored_params=frozen)
        for m in (model, one):
            m.merge_adapter()
        for mine, theirs in zip(model.parameters(), one.parameters(), strict=True):
            assert torch.equal(whole(mine), theirs)
