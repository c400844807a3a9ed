"""Adapters and banks as objects: copied, pickled, saved by torch, sent to other processes, held by a module."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from support.bank_cases import WIDTHS, contents, make_adapter, make_bank, unchanged
from support.problems import make_x

from road_kernels import Adapter

LAYER = "layers.0.qkv"


def through_torch(value, **kw):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **kw)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle, protocol 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "torch.save, weights_only": lambda value: through_torch(value, weights_only=True),
    "torch.save": lambda value: through_torch(value, weights_only=False),
}
deep = [name for name in COPIES if name != "copy"]


def same_values(a: Adapter, b: Adapter) -> bool:
    assert (a.variant, a.group_size, list(a.layers)) == (b.variant, b.group_size, list(b.layers))
    return all(torch.equal(s, t) for name in a.layers for s, t in zip(a.layers[name], b.layers[name], strict=True))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_an_adapter_copies(variant, how):
    adapter = make_adapter(variant=variant, dtype=torch.bfloat16)
    other = COPIES[how](adapter)
    assert type(other) is Adapter and other is not adapter and same_values(other, adapter)
    theta = other.layers[LAYER][0]
    assert theta.dtype == torch.bfloat16
    with pytest.raises(TypeError):
        other.layers["x"] = other.layers[LAYER]
    theta.add_(1)
    assert same_values(other, adapter) == (how == "copy")  # which alone shares the tensors


def test_parameters_stay_parameters():
    trained = Adapter({"q": (torch.nn.Parameter(torch.zeros(32)), torch.nn.Parameter(torch.ones(32)))})
    for how in COPIES:
        theta = COPIES[how](trained).layers["q"][0]
        assert isinstance(theta, torch.nn.Parameter) and theta.requires_grad


def test_what_is_unpickled_is_checked():
    data = pickle.dumps(make_adapter()).replace(b"road_1", b"road_3")
    with pytest.raises(ValueError, match=r"variant must be .* got 'road_3'"):
        pickle.loads(data)


@pytest.mark.parametrize("how", COPIES)
def test_a_bank_copies(how):
    bank, x = make_bank(capacity=4, compact=False, dtype=torch.float16), make_x(3, 24)
    bank.load("gone", make_adapter(1))
    bank.load("anna", make_adapter(2, "road_4"))
    bank.load("ben", make_adapter(3))
    bank.evict("gone")
    ids, before = bank.ids(["ben", None, "anna"]), contents(bank)
    want = bank.rotate(LAYER, x, ids)
    with bank.hold(["anna"]):
        other = COPIES[how](bank)
    assert repr(other) == repr(bank) and other.widths == WIDTHS and other.group_size == bank.group_size
    assert (other.names, other.free) == (("anna", "ben"), 2)
    assert [other.slot(name) for name in other.names] == [bank.slot(name) for name in bank.names]
    assert torch.equal(other.rotate(LAYER, x, ids), want)  # ids of the one are ids of the other
    assert unchanged(other, before)
    assert torch.equal(other.ids_of_slots(torch.arange(4)), bank.ids_of_slots(torch.arange(4)))
    # A bank of its own: no memory, no lock and no hold in common.
    other.update("anna", make_adapter(4, "road_2"))
    other.evict("ben")
    other.load("carl", make_adapter(5))
    assert unchanged(bank, before) and bank.names == ("anna", "ben")
    bank.evict("anna")
    assert other.names == ("anna", "carl") and other.slot("anna") == ids[2]


@pytest.mark.parametrize("how", COPIES)
def test_a_bank_without_adapters_copies(how):
    bank = COPIES[how](make_bank(dtype=torch.bfloat16))
    assert (len(bank), bank.free, bank.dtype) == (0, 3, torch.bfloat16)
    assert bank.device == make_bank().device


def test_an_evicted_adapter_that_is_held_stays_behind():
    bank = make_bank(capacity=1)
    bank.load("anna", make_adapter())
    with bank.hold(["anna"]):
        bank.evict("anna")
        other = copy.deepcopy(bank)
    assert (other.names, other.free) == ((), 1)
    assert unchanged(other, contents(make_bank(capacity=1)))


def test_a_damaged_bank_is_refused():
    bank = make_bank(capacity=2)
    bank.load("anna", make_adapter())
    restore, (widths, capacity, group_size, compact, by_name, rows, _) = bank.__reduce__()
    for slots, rows_given, message in (
        ({"anna": 2}, rows, r"a bank of 2 slots cannot hold adapters in the slots \[2\]"),
        ({"anna": 0, "ben": 0}, rows.repeat(2, 1, 1), r"in the slots \[0, 0\]"),
        (by_name, rows[..., 1:], "rows must be"),
        ({}, rows, "rows must be"),
    ):
        with pytest.raises(ValueError, match=message):
            restore(widths, capacity, group_size, compact, slots, rows_given)


@pytest.mark.parametrize("how", deep)
def test_handles_belong_to_the_copy_of_their_bank(how):
    bank = make_bank()
    bank.load("anna", make_adapter())
    for pair in ((bank, bank.layer(LAYER)), (bank.layer(LAYER), bank)):
        pair = COPIES[how](pair)
        other, handle = pair if pair[0].__class__ is bank.__class__ else pair[::-1]
        assert handle.bank is other is not bank and handle.name == LAYER
        assert (handle.r1, handle.r2) == other.tables(LAYER)


class Served(torch.nn.Module):
    """A module that holds a bank, a handle on it and the adapter that it trains."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 24)
        self.bank = make_bank()
        self.bank.load("anna", make_adapter())
        self.handle = self.bank.layer(LAYER)
        self.theta, self.alpha = torch.nn.Parameter(torch.zeros(12)), torch.nn.Parameter(torch.ones(12))
        self.adapter = Adapter({LAYER: (self.theta, self.alpha)}, group_size=8)

    def forward(self, x):
        return self.handle.rotate(self.linear(x), self.bank.ids(["anna"] * len(x)))


def test_averaged_models_hold_a_bank_and_an_adapter():
    module, x = Served(), make_x(3, 8)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    other = averaged.module
    assert torch.equal(averaged(x), module(x))
    assert other.adapter.layers[LAYER] == (other.theta, other.alpha)  # its own parameters, not those of the original
    module.bank.update("anna", make_adapter(2))
    assert not torch.equal(averaged(x), module(x))


SPAWNED = """
    import queue, sys
    import torch, torch.distributed as dist, torch.multiprocessing as mp
    from road_kernels import Adapter, AdapterBank


    def make(seed):
        torch.manual_seed(seed)
        return Adapter({"q": (torch.randn(32), torch.rand(32) + 0.5)})


    def check(adapter, bank):
        assert torch.equal(adapter.layers["q"][0], make(1).layers["q"][0])
        assert bank.names == ("anna",) and bank.slot("anna") == 0
        bank.update("anna", make(2))
        return bank.tables("q")[0][0].clone()


    def work(rank, inbox, outbox, path):
        adapter, bank = inbox.get()
        outbox.put((check(adapter, bank), adapter))
        dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
        received = [None, None]
        dist.broadcast_object_list(received, src=0)
        check(*received)
        dist.barrier()


    if __name__ == "__main__":
        context = mp.get_context("spawn")
        inbox, outbox = context.Queue(), context.Queue()
        process = context.Process(target=work, args=(1, inbox, outbox, sys.argv[1]))
        process.start()
        adapter, bank = make(1), AdapterBank({"q": 64}, 2)
        bank.load("anna", adapter)
        before = bank.tables("q")[0].clone()
        inbox.put((adapter, bank))
        theirs, returned = outbox.get(timeout=60)
        assert torch.equal(returned.layers["q"][1], adapter.layers["q"][1])
        assert torch.equal(bank.tables("q")[0], before), "the other process wrote to this bank"
        assert not torch.equal(theirs, before[0])
        del returned
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=2)
        dist.broadcast_object_list([adapter, bank], src=0)
        dist.barrier()
        process.join()
        assert process.exitcode == 0
        print("both ways")
"""


@pytest.mark.slow
def test_other_processes_get_adapters_and_banks(tmp_path):
    """Through multiprocessing's queues, whose tensors are shared memory, and through broadcast_object_list."""
    script = tmp_path / "spawned.py"
    script.write_text(textwrap.dedent(SPAWNED))
    command = [sys.executable, script, tmp_path / "store"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "both ways" in run.stdout
