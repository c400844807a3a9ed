"""overlap=True: a promise about memory, which changes no result."""

import pytest
import torch
from support.backends import DEVICE
from support.problems import make_params, make_x

import road_kernels as rk

IDS = torch.tensor([1, -1, 0, 1, 2], device=DEVICE)


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("form", ["table", "table_half"])
def test_the_same_bits(backend, form, inplace):
    x, bank, one = make_x(5, 64), make_params(form, 3, 64), make_params(form, None, 64)
    for call, args in ((rk.rotate_batched, (*bank, IDS)), (rk.rotate, one)):
        want = call(x, *args, backend=backend)
        assert torch.equal(call(x.clone(), *args, overlap=True, inplace=inplace, backend=backend), want)


def test_ignored_where_gradients_are_recorded(backend):
    """The tables may be an optimizer's: they are in flight."""
    tables = [t.requires_grad_() for t in make_params("table", None, 64)]
    results = []
    for overlap in (False, True):
        z = rk.rotate(make_x(5, 64), *tables, overlap=overlap, backend=backend)
        results.append((z, *torch.autograd.grad(z.square().sum(), tables)))
    assert all(map(torch.equal, *results))


def test_in_the_graph_of_a_compiled_call():
    tables, flags = make_params("table", None, 64), []

    def record(graph, _):
        flags.extend(n.args[6] for n in graph.graph.nodes if "road_kernels.rotate" in str(n.target))
        return graph.forward

    torch._dynamo.reset()
    x = make_x(5, 64)
    z = torch.compile(lambda x: rk.rotate(x, *tables, overlap=True), backend=record, fullgraph=True)(x)
    assert torch.equal(z, rk.rotate(x, *tables))
    assert flags == [True] * (rk.backend_info()["automatic"][DEVICE] != "python")


def test_of_a_bank(backend):
    bank = rk.AdapterBank({"q": 64}, 2, device=DEVICE)
    bank.load("a", rk.Adapter({"q": make_params("road_1", None, 64)}))
    x, ids = make_x(3, 64), bank.ids(["a", None, "a"])
    want = bank.rotate("q", x, ids, backend=backend)
    assert torch.equal(bank.rotate("q", x, ids, overlap=True, backend=backend), want)
    assert torch.equal(bank.layer("q").rotate(x, ids, overlap=True, backend=backend), want)
