"""The CUDA kernels on the host where they differ from other backends: errors that are device-side assertions."""

import pytest
import torch
from support import cuda_shim
from support.problems import FORMS, make_params

pytestmark = [pytest.mark.backend("cuda_shim"), pytest.mark.cpu_only]
if reason := cuda_shim.unavailable():
    pytest.skip(reason, allow_module_level=True)


def rotate_(x, p, q, ids, form):
    form = form.removesuffix("_half")
    cuda_shim.build().rotate_(x, p, q, ids, form, 32, True)


@pytest.mark.parametrize("form", FORMS)
def test_a_singular_block_is_refused_before_anything_is_written(form):
    x = torch.randn(3, 1088)
    before = x.clone()
    p, q = make_params(form, None, 1088)
    for t in (p, q) if form.startswith("table") else (q,):  # makes the last row of the last block zero
        t[-1] = 0
    if form == "road_4":
        q[-33] = 0  # the angle of its r1; that of r2 is the last one
    with pytest.raises(IndexError, match=r"device-side assertion.*a block is singular"):
        rotate_(x, p, q, None, form)
    assert torch.equal(x, before)
    rotate_(x, *make_params(form, None, 1088), None, form)
    assert not torch.equal(x, before)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("adapter", [0, 2])
def test_only_adapters_in_use_count(adapter, id_dtype):
    p, q = make_params("road_1", 3, 64)
    q[adapter, -1] = 0
    for ids, refused in ([1, -1, 1], False), ([-1, -1, -1], False), ([1, -1, adapter], True):
        x, ids = torch.randn(3, 64), torch.tensor(ids, dtype=id_dtype)
        if refused:
            with pytest.raises(IndexError, match="a block is singular"):
                rotate_(x, p, q, ids, "road_1")
        else:
            rotate_(x, p, q, ids, "road_1")


def test_empty_batches_and_empty_banks_are_accepted():
    p, q = make_params("road_1", None, 64)
    rotate_(torch.empty(0, 64), p, q * 0, None, "road_1")
    rotate_(torch.ones(2, 64), *torch.ones(2, 0, 32), torch.tensor([-1, -1]), "road_1")
