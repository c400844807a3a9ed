"""Rows of empty slots: what passes bit for bit, finite or not."""

import pytest
import torch
from support.backends import DEVICE
from support.bank_cases import make_adapter, make_bank
from support.problems import make_x

LAYER = "layers.0.qkv"


@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_rows_that_are_not_finite_pass_by_the_ids_of_empty_slots(backend, compact):
    bank = make_bank(capacity=4, compact=compact)
    bank.load("anna", make_adapter(1))
    bank.load("ben", make_adapter(2))
    bank.evict("anna")
    x = make_x(4, 24)
    x[:, 0], x[:, 1], x[:, 2] = float("inf"), float("nan"), -0.0
    for dtype in (torch.int32, torch.int64):
        slots = torch.tensor([0, bank.slot("ben"), -1, 3], dtype=dtype)
        ids = bank.ids_of_slots(slots)
        assert ids.tolist() == [-1, bank.slot("ben"), -1, -1] and ids.dtype == dtype
        z = bank.rotate(LAYER, x, ids, backend=backend)
        same = (z.view(torch.int32) == x.view(torch.int32)).all(1)
        assert same.tolist() == [True, False, True, True]
        assert bank.ids_of_slots(slots[None, :, None].expand(2, 4, 3)).shape == (2, 4, 3)
        assert bank.ids_of_slots(slots, out=slots) is slots and torch.equal(slots, ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
@pytest.mark.parametrize("inplace", [False, True])
def test_rows_that_are_not_finite_pass_by_the_number_of_an_empty_slot(backend, compact, inplace, dtype):
    """Tables that are the identity, whoever wrote them; an adapter beside them sees its infinities."""
    bank = make_bank(capacity=4, compact=compact)
    bank.load("ben", make_adapter(2))
    x = make_x(4, 24, dtype=dtype)
    x[:, 0], x[:, 1], x[:, 2] = float("inf"), float("nan"), -0.0
    before = x.clone()
    z = bank.rotate(LAYER, x, torch.tensor([3, bank.slot("ben"), 1, 2]), inplace=inplace, backend=backend)
    bits = {2: torch.int16, 4: torch.int32}[x.element_size()]
    same = (z.view(bits) == before.view(bits)).all(1)
    assert same.tolist() == [True, False, True, True]
    assert z[1].isnan().sum() > before[1].isnan().sum()


def test_ids_of_slots_follow_the_bank():
    bank = make_bank(capacity=2)
    slots = torch.tensor([0, 1])

    def ids():
        return bank.ids_of_slots(slots).tolist()

    assert ids() == [-1, -1]
    bank.load("anna", make_adapter(1))
    assert ids() == [0, -1]
    with bank.hold(["anna"]):
        bank.update("anna", make_adapter(2))
        assert ids() == [0, 1]
        bank.evict("anna")
        assert ids() == [0, -1]
    assert ids() == [-1, -1]
    assert bank.ids_of_slots(torch.empty(0, 3, dtype=torch.int32)).shape == (0, 3)


def test_bad_slots():
    bank, slots = make_bank(capacity=2), torch.tensor([0, 1])
    for call, error, message in (
        (lambda: bank.ids_of_slots([0]), TypeError, "slots must be an int32 or int64 tensor on .*, got list"),
        (lambda: bank.ids_of_slots(slots.float()), TypeError, "slots must be .* got torch.float32"),
        (lambda: bank.ids_of_slots(slots.to("meta")), TypeError, "got torch.int64 on meta"),
        (lambda: bank.ids_of_slots(slots, out=slots.short()), TypeError, "out must be .* got torch.int16"),
        (lambda: bank.ids_of_slots(slots, out=slots[:1]), ValueError, r"the shape of slots, \[2\], got \[1\]"),
        *(  # a device-side assertion on a GPU
            [
                (lambda s=s: bank.ids_of_slots(torch.tensor([0, s])), IndexError, rf"holds {s} \(flat position 1\)")
                for s in (2, -2, 2**32)
            ]
            if DEVICE == "cpu"
            else []
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert slots.tolist() == [0, 1]
