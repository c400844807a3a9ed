"""RoadMatrix, which replaces PEFT's dense matrix when its bitsandbytes layers are merged."""

import pytest
import torch
from peft.tuners.road.layer import _get_delta_weight
from support.peft_models import VARIANTS
from support.problems import make_params, make_x

from road_kernels.integrations.peft._matrix import delta_weight


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_multiplies_as_the_dense_matrix_does(variant):
    theta, alpha = make_params(variant, None, 24)
    args = variant, 6, theta, alpha
    dense, ours = _get_delta_weight(*args), delta_weight(_get_delta_weight)(*args)
    assert (ours.dtype, ours.device) == (dense.dtype, dense.device)
    for other in (make_x(24, 5), make_x(24), make_x(5, 24).t(), make_x(2, 24, 5)):
        torch.testing.assert_close(torch.matmul(ours.to(torch.float32), other), torch.matmul(dense, other))
        inverse = torch.linalg.inv(ours.to(torch.float32)).to(torch.float32)
        want = torch.matmul(torch.linalg.inv(dense), other)
        torch.testing.assert_close(torch.matmul(inverse, other), want, rtol=1e-4, atol=1e-5)


def test_it_is_the_dense_matrix_for_everything_else():
    args = "road_2", 6, *make_params("road_2", None, 24)
    dense, ours = _get_delta_weight(*args), delta_weight(_get_delta_weight)(*args)
    assert torch.equal(torch.mul(ours, 2), dense * 2)
    assert torch.equal(torch.diag(ours), dense.diag())
    assert torch.equal(ours.t(), dense.t())
    assert ours.shape == (24, 24)
    inverse = torch.linalg.inv(ours)
    torch.testing.assert_close(inverse.sum(), torch.linalg.inv(dense).sum())
    assert torch.equal(torch.linalg.inv(inverse).t(), dense.t())


def test_products_keep_the_dtype_of_the_other_factor():
    ours = delta_weight(_get_delta_weight)("road_1", 6, *make_params("road_1", None, 24))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.matmul(ours, make_x(24, 5, dtype=dtype)).dtype == dtype


def test_a_singular_block_raises_what_torch_raises():
    theta, alpha = make_params("road_1", None, 24)
    alpha[4] = 0
    inverse = torch.linalg.inv(delta_weight(_get_delta_weight)("road_1", 6, theta, alpha))
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(7, 10\)"):
        torch.matmul(inverse, make_x(24, 5))
