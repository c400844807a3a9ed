"""What the ranks of the tensor parallel tests do: PEFT models under parallelize_module, beside one process."""

import copy

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from peft import get_peft_model
from support.peft_models import TwoLinears, config, first, layers, make_model, randomize
from support.problems import make_x
from support.sharded import loss, mesh, refusal, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import road_kernels as rk
from road_kernels.distributed.parallel import RoadParallel, RoadReplicated
from road_kernels.integrations import peft as road_peft

TWO = {"first": RoadParallel(ColwiseParallel()), "second": RoadParallel(RowwiseParallel())}


def assert_same(got, want, tolerance=1e-5):
    for mine, theirs in zip(got, want, strict=True):
        scale = max(theirs.abs().max().item(), 1e-3)
        torch.testing.assert_close(whole(mine), theirs, rtol=0, atol=tolerance * scale)


def gradients(model):
    return [p.grad for p in model.parameters() if p.requires_grad]


def llama(kv_heads, variant):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 50}
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=kv_heads))
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return randomize(get_peft_model(model, config(variant, 16, names), adapter_name="A"))


def check_llama(rank, size, kv_heads, variant, inplace):
    on, model = mesh(size), llama(kv_heads, variant)
    one, tokens = copy.deepcopy(model), torch.randint(50, (2, 7))
    columns, rows = RoadParallel(ColwiseParallel()), RoadParallel(RowwiseParallel())
    kv = columns if kv_heads % size == 0 else RoadReplicated()
    with road_peft.enabled(inplace=inplace):
        for layer in model.base_model.model.model.layers:
            plan = {
                "self_attn.q_proj": columns,
                "self_attn.k_proj": kv,
                "self_attn.v_proj": kv,
                "self_attn.o_proj": rows,
            }
            plan |= {"mlp.gate_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": rows}
            parallelize_module(layer, on, plan)
            if kv_heads % size:  # of one kv head, which serves all heads, each rank has fewer to serve
                layer.self_attn.num_key_value_groups //= size
        for _ in range(2):
            for m in (model, one):
                m(input_ids=tokens, labels=tokens).loss.backward()
        assert_same(gradients(model), gradients(one), 1e-4)
        for p in model.parameters():
            if p.requires_grad:
                assert p.grad.placements == p.placements
        with torch.no_grad():
            want = one(input_ids=tokens).logits
            assert_same([model(input_ids=tokens).logits], [want])
            model.merge_adapter()
            assert_same([model(input_ids=tokens).logits], [want])
            model.unmerge_adapter()
            assert_same([model(input_ids=tokens).logits], [want])


def check_merge(rank, safe):
    """The weights of one process to the last bit."""
    model = make_model(("road_4", 64))
    one = copy.deepcopy(model)
    with road_peft.enabled():
        parallelize_module(model.base_model.model, mesh(2), TWO)
        for m in (model, one):
            m.merge_adapter(safe_merge=safe)
        for mine, theirs in zip(model.parameters(), one.parameters(), strict=True):
            assert torch.equal(whole(mine), theirs)
        assert first(model).base_layer.weight.placements == (Shard(0),)


def check_several(rank):
    model = make_model(("road_1", 64), ("road_4", 32))
    one, x = copy.deepcopy(model), make_x(3, 5, 16)
    with road_peft.enabled():
        parallelize_module(model.base_model.model, mesh(2), TWO)
        for m in (model, one):
            m.base_model.set_adapter(["A", "B"])
            loss(m(x)).backward()
        assert_same(gradients(model), gradients(one))


def check_compiled(rank):
    model = make_model(("road_1", 64))
    one, x = copy.deepcopy(model), make_x(3, 5, 16)
    with road_peft.enabled():
        parallelize_module(model.base_model.model, mesh(2), TWO)
        compiled = torch.compile(model, backend="aot_eager")
        z = compiled(x)
        assert_same([z], [one(x)])
        loss(z).backward()
        loss(one(x)).backward()
        assert_same(gradients(model), gradients(one))


def check_mixed_batch(rank):
    model = make_model(("road_1", 64), ("road_4", 64), ("road_2", 32)).eval()
    one, x, names = copy.deepcopy(model), make_x(4, 5, 16), ["B", "__base__", "C", "A"]
    with road_peft.enabled():
        parallelize_module(model.base_model.model, mesh(2), TWO)
        with torch.no_grad():
            assert_same([model(x, adapter_names=names)], [one(x, adapter_names=names)])
        model.base_model.set_adapter(["A", "B", "C"])
        one.base_model.set_adapter(["A", "B", "C"])
        for m in (model, one):
            loss(m(x, adapter_names=names)).backward()
        assert_same(gradients(model), gradients(one))


class Block(nn.Module):
    """A block without PEFT: each layer is a linear one and a call of road_apply."""

    class Layer(nn.Module):
        group_size = 32

        def __init__(self, inputs, outputs):
            super().__init__()
            self.linear = nn.Linear(inputs, outputs).requires_grad_(False)
            self.theta, self.alpha = (
                nn.Parameter(torch.rand(outputs // 2)),
                nn.Parameter(torch.rand(outputs // 2) + 0.5),
            )

        def forward(self, x):
            return rk.road_apply(self.linear(x), self.theta, self.alpha, group_size=self.group_size)

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), self.Layer(64, 128), self.Layer(128, 64)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def check_sequence_parallel(rank, size):
    """Each rank has its own tokens between the layers."""
    on, model, x = mesh(size), Block(), make_x(2, 8, 64)
    one, own = copy.deepcopy(model), x.chunk(size, 1)[rank]
    up = RoadParallel(ColwiseParallel(input_layouts=Shard(1)), base="linear")
    down = RoadParallel(RowwiseParallel(output_layouts=Shard(1)), base="linear")
    parallelize_module(model, on, {"norm": SequenceParallel(use_local_output=True), "up": up, "down": down})
    z, want = model(own), one(x)
    assert_same([z], [want.chunk(size, 1)[rank]])
    loss(z).backward()
    loss(want).backward()
    assert_same(gradients(model)[2:], gradients(one)[2:])  # without the norm's
    assert model.down.theta.grad.placements == model.down.theta.placements


def refusals(rank):
    on = mesh(2)
    small = get_peft_model(TwoLinears(128), config("road_1", 128), adapter_name="A")
    return {
        "cut": refusal(lambda: parallelize_module(small.base_model.model, on, TWO)),
        "style": refusal(lambda: RoadParallel(SequenceParallel())),
    }


def parallel_model(rank, size):
    model = make_model(("road_2", 16))
    parallelize_module(model.base_model.model, mesh(size), TWO)
    return model


def save(rank, size, folder):
    """Shards, and the whole model by rank 0; returns what one process has."""
    model = parallel_model(rank, size)
    with torch.no_grad():
        for layer in layers(model):
            layer.road_theta["A"].mul_(2)
    dcp.save(model.state_dict(), checkpoint_id=f"{folder}/shards")
    state = {name: whole(t) for name, t in model.state_dict().items()}
    if rank == 0:
        torch.save(state, f"{folder}/whole.pt")
    dist.barrier()
    return {name: t.detach() for name, t in state.items()}


def load(rank, size, folder):
    model = parallel_model(rank, size)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=f"{folder}/shards")
    model.load_state_dict(state)
    return {name: whole(t).detach() for name, t in model.state_dict().items()}


def save_fsdp(rank, folder):
    """An optimizer's step under FSDP2, then its and the model's state, by torch.distributed.checkpoint."""
    model = make_model(("road_1", 64))
    fully_shard(model, mesh=mesh(2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with road_peft.enabled():
        loss(model(make_x(3, 16))).backward()
    optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=f"{folder}/fsdp")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)  # of rank 0


def check_two_parallelisms(rank):
    """FSDP2 over the rows of a mesh, tensor parallelism over its columns; a step of the optimizer."""
    on = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model, x = make_model(("road_1", 64)), make_x(4, 5, 16)
    one = copy.deepcopy(model)
    with road_peft.enabled():
        parallelize_module(model.base_model.model, on["tensor"], TWO)
        for layer in layers(model):
            fully_shard(layer, mesh=on["data"])
        fully_shard(model, mesh=on["data"])
        for m in (model, one):
            optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.01)
            # Each half of the batch on its own ranks; FSDP takes the mean of their gradients.
            mine = x.chunk(2)[on.get_local_rank("data")] if m is model else x
            (loss(m(mine)) * (1 if m is model else 0.5)).backward()
            optimizer.step()
        assert_same(gradients(model), gradients(one))
        assert_same(model.parameters(), one.parameters())
        model.reshard()
        for m in (model, one):
            m.merge_adapter()
        assert_same(model.parameters(), one.parameters())
