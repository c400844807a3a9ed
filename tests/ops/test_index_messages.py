"""The IndexError of plain PyTorch says which argument holds what, in the words of the compiled kernels."""

import re

import pytest
import torch
from support.fused_cases import MAX_POSITION, OPS, make
from support.lora_cases import GROUP
from support.lora_cases import make as make_lora
from support.problems import make_params, make_x

from road_kernels import python_fallback

pytestmark = pytest.mark.cpu_only

IDS = torch.tensor([0, -1, 4, 3])
OF_IDS = re.escape(
    "adapter_ids holds 4 (flat position 2), but must hold -1 (no adapter) or the index of one of the bank's 4 adapters"
)


def message(call) -> str:
    with pytest.raises(IndexError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("op", OPS)
def test_ids_of_a_fused_op(op):
    case = make(op, (4,), 16, 8, ids=IDS)
    for backend in ("cpu", "python"):
        assert re.fullmatch(OF_IDS, message(lambda b=backend: case.run(backend=b)))
    tensors = *case.args, case.r1, case.r2
    in_grad = torch.func.grad(lambda x: case.run_on(x, *tensors)[0].sum())
    assert re.fullmatch(OF_IDS, message(lambda: in_grad(case.x)))


@pytest.mark.parametrize("bad", [-1, MAX_POSITION, 2**40])
def test_positions(bad):
    case = make("rope", (2, 2), 16, 8, positions=torch.tensor([[0, bad], [1, 2]]))
    texts = {message(lambda b=backend: case.run(backend=b)) for backend in ("cpu", "python")}
    assert texts == {
        f"positions holds {bad} (flat position 1), but cos_sin_cache has positions 0 to {MAX_POSITION - 1}"
    }


def test_ids_of_the_specification():
    x, (r1, r2) = make_x(4, 16), make_params("table", 4, 16)
    assert re.fullmatch(OF_IDS, message(lambda: python_fallback.rotate_batched(x, r1, r2, IDS, 8)))
    h, *rest = make_lora(leading=(4,), bank=(4, 4))
    call = python_fallback.road_lora_apply_batched
    assert re.fullmatch(OF_IDS, message(lambda: call(h, *rest, IDS, group_size=GROUP)))
    text = message(lambda: call(h, *rest, IDS.clamp(max=3), IDS, group_size=GROUP))
    assert re.fullmatch(OF_IDS.replace("adapter_ids", "lora_ids"), text)
    empty = torch.empty(0, 16)
    with pytest.raises(IndexError, match=r"adapter_ids holds 0 \(flat position 0\), .* the bank's 0 adapters"):
        python_fallback.rotate_batched(x, empty, empty, torch.tensor([0, -1, -1, -1]), 8)
