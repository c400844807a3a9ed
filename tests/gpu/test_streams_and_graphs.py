"""Work goes to the current stream; CUDA graphs read the current contents of their tensors."""

import pytest
import torch
from gpu_work import (
    CYCLES,
    WORK,
    assert_ordered_on_the_current_stream,
    assert_replays_read_current_contents,
    capture,
    make_ids,
    make_work,
)
from support.bank_cases import make_adapter, make_bank
from support.problems import make_params, make_x

import road_kernels as rk


@pytest.mark.parametrize("name", WORK)
def test_work_is_ordered_on_the_current_stream(kernels, name):
    assert_ordered_on_the_current_stream(make_work(name, kernels))


def test_backward_runs_on_the_stream_of_its_forward(kernels):
    x, gz = make_x(300, 512), make_x(300, 512, seed=1)
    theta, alpha = torch.rand(256).requires_grad_(), torch.ones(256).requires_grad_()

    def step():
        return torch.autograd.grad(rk.road_apply(x, theta, alpha, backend=kernels), (theta, alpha), gz)

    want, kept = step(), x.clone()
    x.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        x.copy_(kept)
        got = step()
    stream.synchronize()
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("form", ["road_1", "road_4", "table_half"])
@pytest.mark.parametrize("name", WORK)
def test_replays_read_current_contents(kernels, name, form):
    """x, the gradient, the ids and the tables all change between replays."""
    assert_replays_read_current_contents(lambda seed: make_work(name, kernels, form, seed=seed))


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_a_training_step_in_a_graph(kernels, inplace):
    """In place including the check for singular blocks, a device-side assertion."""
    x, gz = make_x(300, 512, dtype=torch.bfloat16), make_x(300, 512, dtype=torch.bfloat16, seed=1)
    theta, alpha = torch.rand(256).requires_grad_(), torch.ones(256).requires_grad_()

    def step():
        y = x.clone() if inplace else x
        return torch.autograd.grad(rk.road_apply(y, theta, alpha, inplace=inplace, backend=kernels), (theta, alpha), gz)

    graph, written = capture(step)
    with torch.no_grad():
        theta.uniform_()
        x.normal_()
    graph.replay()
    assert all(map(torch.equal, written, step()))


def test_a_captured_graph_sees_the_adapters_that_a_bank_loads(kernels):
    bank, layer = make_bank(capacity=3, device="cuda"), "layers.0.qkv"
    x, ids = make_x(4, 24, dtype=torch.bfloat16), torch.full((4,), -1, dtype=torch.int32)
    graph, (z,) = capture(lambda: (bank.rotate(layer, x, ids, backend=kernels),))
    graph.replay()
    assert torch.equal(z, x)
    for names, change in (
        (["anna", None, "anna"], lambda: bank.load("anna", make_adapter(1))),
        (["anna", "ben", None, "ben"], lambda: bank.load("ben", make_adapter(2))),
        (["anna", "ben", None, "ben"], lambda: bank.replace("ben", make_adapter(3))),
        (["anna"], lambda: bank.evict("ben")),
    ):
        change()
        bank.ids(names, out=ids)
        before = z.clone()
        graph.replay()
        assert torch.equal(z, bank.rotate(layer, x, ids, backend=kernels))
        assert not torch.equal(z, before)


def test_ids_in_a_graph_may_name_any_adapter(kernels):
    """One graph for any number of adapters in a batch: nothing about the ids is captured."""
    work = make_work("batched backward", kernels, adapters=300)
    graph, written = capture(work)
    for ids in (torch.arange(1200) % 300, torch.zeros(1200), make_ids(1200, 2)):
        work.ids.copy_(ids)
        graph.replay()
        assert all(map(torch.equal, written, work()))


def test_the_second_device(kernels):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    for name in WORK:
        work = make_work(name, kernels)
        other = make_work(name, kernels)
        other.x, other.gz, other.p, other.q = (t.to("cuda:1") for t in (other.x, other.gz, other.p, other.q))
        other.ids = None if other.ids is None else other.ids.to("cuda:1")
        got = other()
        assert torch.cuda.current_device() == 0
        for g, want in zip(got, work(), strict=True):
            assert g.device.index == 1
            assert torch.equal(g.cpu(), want.cpu())


@pytest.mark.parametrize("overlap", [False, True])
def test_inputs_made_by_the_kernel_in_front(kernels, overlap):
    """Launched dependently, a kernel may start before the one in front has finished: x must still be waited for.

    With overlap=True tables and ids too may be read before; here nothing writes them.
    """
    weight, x = torch.randn(2048, 2048, dtype=torch.bfloat16) / 45, make_x(256, 2048, dtype=torch.bfloat16)
    tables, ids = make_params("table_half", 5, 2048), torch.arange(256, dtype=torch.int32) % 6 - 1
    outputs = []
    for _ in range(30):
        x.copy_(make_x(256, 2048, dtype=torch.bfloat16, seed=len(outputs) % 3))
        h = x @ weight
        outputs.append(rk.rotate_batched(h, *tables, ids, inplace=True, overlap=overlap, backend=kernels))
    torch.cuda.synchronize()
    for k in range(3):
        h = make_x(256, 2048, dtype=torch.bfloat16, seed=k) @ weight
        torch.cuda.synchronize()
        want = rk.rotate_batched(h, *tables, ids, backend=kernels)
        assert all(torch.equal(z, want) for z in outputs[k::3])


def test_tables_made_by_the_kernel_in_front(kernels):
    """Without the promise of overlap, also where road_tables itself is in front."""
    x = make_x(64, 4096, dtype=torch.bfloat16)
    with rk.use_backend(kernels):
        for seed in range(20):
            theta, alpha = make_params("road_1", None, 4096, seed=seed)
            torch.cuda.synchronize()
            z = rk.rotate(x, *rk.road_tables(theta, alpha))
            torch.cuda.synchronize()
            r1, r2 = rk.road_tables(theta, alpha)
            torch.cuda.synchronize()
            assert torch.equal(z, rk.rotate(x, r1, r2))
