"""What a call does on the device: its kernels, its memory, and that it does not synchronise."""

import pytest
import torch
from gpu_work import (
    FORWARD,
    WORK,
    assert_repeatable,
    device_events,
    is_torchs,
    make_work,
    refusing_synchronisation,
    requested_bytes,
)
from support.problems import FORMS, make_params, make_x

import road_kernels as rk
from road_kernels.backends import registry

FEW_IDS = 4096  # that one kernel sorts; more take three, or with Triton four


def kernels_of(name: str) -> int:
    """Backward is two kernels, after one that sorts the ids of a mixed batch."""
    return 1 if name in FORWARD or name.endswith("of x") else 3 if "batched" in name else 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WORK)
def test_one_kernel_forward_two_backward(kernels, name, form):
    """And one more that sorts a mixed batch; no kernel of torch's, no copy and no fill."""
    events = device_events(make_work(name, kernels, form))
    assert len(events) == kernels_of(name), events
    assert not any(map(is_torchs, events)), events


@pytest.mark.parametrize("rows", [FEW_IDS + 1, 100_000])
def test_many_ids_take_a_fixed_number_of_kernels(kernels, rows):
    """At most four sort, of which torch has only the one that sets Triton's counters to zero. No copies to the host."""
    events = device_events(make_work("batched backward", kernels, rows=rows, dim=64))
    assert len(events) <= (5 if kernels == "cuda" else 6), events
    assert sum(map(is_torchs, events)) <= (kernels == "triton"), events


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_autograd_adds_no_kernel(kernels, inplace):
    """Training alpha in place checks for singular blocks: one more kernel on cuda, several of torch's on triton."""
    x, gz = make_x(300, 512, dtype=torch.bfloat16), make_x(300, 512, dtype=torch.bfloat16, seed=1)
    theta, alpha = make_params("road_1", None, 512)
    theta.requires_grad_()
    checked = inplace and kernels == "cuda"
    if not inplace:
        x.requires_grad_()
    if not inplace or checked:
        alpha.requires_grad_()
    leaves = [t for t in (x, theta, alpha) if t.requires_grad]

    def step():
        # Detached, because x would carry the history of the first in-place step into the second.
        z = rk.road_apply(x.detach() if inplace else x, theta, alpha, inplace=inplace, backend=kernels)
        torch.autograd.grad(z, leaves, gz)

    assert len(device_events(step)) == 3 + checked


def test_tables_are_one_kernel_and_merging_from_angles_two(kernels):
    w, (theta, alpha) = make_x(512, 300, dtype=torch.bfloat16), make_params("road_1", None, 512)
    assert len(device_events(lambda: rk.road_tables(theta, alpha))) == 1
    assert len(device_events(lambda: rk.road_merge(w, None, theta, alpha, inplace=True, backend=kernels))) == 2


def test_merging_is_one_kernel(kernels):
    merge = registry._loaded[kernels][0].merge
    w, (r1, r2) = make_x(512, 300, dtype=torch.bfloat16), make_params("table", None, 512)
    for weight in (w, w.t().contiguous().t()):
        assert len(device_events(lambda weight=weight: merge(weight, r1, r2, 64))) == 1


@pytest.mark.parametrize("name", WORK)
def test_no_call_synchronises(kernels, name):
    work = make_work(name, kernels)
    work()
    with refusing_synchronisation():
        work()


def test_training_in_place_does_not_synchronise(kernels):
    """The check for singular blocks is an assertion on the device."""
    for form in ("road_1", "road_4"):
        x, params = make_x(7, 64), [t.requires_grad_() for t in make_params(form, 3, 64)]
        ids = torch.tensor([0, 2, -1, 1, 1, 0, 2])
        variant = {"variant": form, "inplace": True, "backend": kernels}
        rk.road_apply_batched(x.clone(), *params, ids, **variant).sum().backward()
        y = x.clone()
        with refusing_synchronisation():
            rk.road_apply_batched(y, *params, ids, **variant).sum().backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WORK)
def test_memory(name, form):
    """The output, and for backward the scratch that csrc/cuda/road_cuda.h promises."""
    if "cuda" not in [n for n, (module, _) in registry._loaded.items() if module]:
        pytest.skip("the CUDA kernels are not usable here")
    work = make_work(name, "cuda", form)
    requested, result = requested_bytes(work)
    outputs = 0 if "in place" in name else sum(t.nbytes for t in result)
    if kernels_of(name) == 1:
        assert requested == outputs
        return
    rows, dim = work.x.shape
    adapters = work.p.shape[0] if work.ids is not None else 1
    sums = dim if form in ("road_1", "table_half") else 2 * dim
    blocks = rows // 4 + 1  # of four rows or more
    scratch = 4 * (blocks + adapters + 1) * sums
    order = 0 if work.ids is None else 8 * (rows + adapters + 1)
    assert outputs < requested <= outputs + scratch + order


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("form", ["road_1", "road_4"])
def test_bitwise_repeatable(kernels, name, form):
    assert_repeatable(make_work(name, kernels, form, rows=5000, dim=1024))


def test_a_launch_that_fails_raises():
    """A bank of more adapters than the kernels can count; expanded, it takes no memory."""
    if "cuda" not in [n for n, (module, _) in registry._loaded.items() if module]:
        pytest.skip("the CUDA kernels are not usable here")
    x, ids, (theta, alpha) = make_x(4, 64), torch.tensor([0, 2, -1, 1]), make_params("road_1", 1, 64)
    bank = [t.expand(2**31 - 1, -1) for t in (theta, alpha)]
    with pytest.raises(RuntimeError, match="invalid argument"):
        rk.road_apply_batched(x, *bank, ids, backend="cuda")
    bank = [t.expand(3, -1) for t in (theta, alpha)]  # the next call works
    z = rk.road_apply_batched(x, *bank, ids, backend="cuda")
    assert torch.equal(z[[0, 1, 3]], rk.road_apply(x[[0, 1, 3]], theta[0], alpha[0], backend="cuda"))
