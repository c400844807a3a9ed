"""Arguments of RoAd + LoRA that are refused by name, before anything is written."""

import pytest
import torch
from support.lora_cases import GROUP, IN, RANK, make
from support.problems import make_x

import road_kernels as rk

NOT_FINITE = float("nan")
REFUSED = [
    ("h", lambda t: t.long(), TypeError, "h must be float16"),
    ("x", lambda t: t[..., :3, :], ValueError, r"x must be \[6, 5, in\]"),
    ("x", lambda t: t[..., :7], ValueError, r"lora_a must be \[r, 7\], got \[4, 24\]"),
    ("lora_a", lambda t: t[None], ValueError, "for a bank use road_lora_apply_batched"),
    ("lora_b", lambda t: t[:, :3], ValueError, "lora_b must have the rank of lora_a"),
    ("lora_b", lambda t: t[:60], ValueError, r"lora_b must be \[64, r\], got \[60, 4\]"),
    ("lora_a", lambda t: t.to("meta"), ValueError, "lora_a must be on the device of h"),
    ("theta", lambda t: t[:5], ValueError, "theta must be"),
    ("scaling", lambda t: "1", TypeError, "scaling must be a number, got str"),
    ("scaling", lambda t: NOT_FINITE, ValueError, "scaling must be finite"),
    ("scaling", lambda t: torch.ones(3), TypeError, "scaling must be a number, got Tensor"),
    ("group_size", lambda t: 3, ValueError, "group_size must be even"),
    ("variant", lambda t: "table", ValueError, "variant must be"),
]


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize(
    ("name", "spoil", "error", "message"), REFUSED, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(REFUSED)]
)
def test_bad_input_is_refused_before_anything_is_written(name, spoil, error, message, inplace):
    names = ("h", "x", "theta", "alpha", "lora_a", "lora_b")
    call = dict(zip(names, make(), strict=True)) | {"scaling": 1.0, "group_size": GROUP, "variant": "road_1"}
    call[name] = spoil(call[name])
    before = call["h"].clone()
    with pytest.raises(error, match=message):
        rk.road_lora_apply(**call, inplace=inplace)
    assert torch.equal(call["h"], before)


def test_bad_input_of_a_batch():
    h, x, *bank = make(bank=(3, 2))
    ids, lora_ids = torch.tensor([0, 1, 2, 0, -1, 1]), torch.tensor([0, 1, 0, 0, -1, 1])
    before = h.clone()
    for changed, error, message in (
        ({"adapter_ids": ids + 1}, IndexError, r"adapter_ids holds 3 \(flat position 2\)"),
        ({"lora_ids": lora_ids + 1}, IndexError, r"lora_ids holds 2 \(flat position 1\), .* the bank's 2 adapters"),
        ({"lora_ids": lora_ids[:3]}, ValueError, r"the shape of lora_ids must be a prefix of \[6, 5\] \(h without"),
        ({"lora_ids": lora_ids.float()}, TypeError, "lora_ids must be int32 or int64"),
        ({"lora_ids": None}, IndexError, r"adapter_ids holds 2 \(flat position 2\), .* the bank's 2 adapters"),
        ({"lora_a": bank[2][0]}, ValueError, "for one adapter use road_lora_apply"),
        ({"lora_b": bank[3][:1]}, ValueError, "the rank and the number of lora_a"),
        ({"scaling": torch.ones(3)}, ValueError, r"scaling must be a number or \[2\]"),
    ):
        names = "theta", "alpha", "lora_a", "lora_b"
        call = {"adapter_ids": ids, "lora_ids": lora_ids, **dict(zip(names, bank, strict=True)), **changed}
        with pytest.raises(error, match=message):
            rk.road_lora_apply_batched(h, x, **call, group_size=GROUP, inplace=True)
        assert torch.equal(h, before)


def test_in_place_refusals():
    h, x, *rest = make()
    with pytest.raises(RuntimeError, match="h is a leaf tensor"):
        rk.road_lora_apply(h.requires_grad_(), x, *rest, group_size=GROUP, inplace=True)
    with pytest.raises(ValueError, match="h shares memory"):
        square = make_x(64, 64)
        factors = square[:RANK, :IN], square[:, :RANK]
        rk.road_lora_apply(square, make_x(64, IN), *rest[:2], *factors, group_size=GROUP, inplace=True)
    trained = [t.clone().requires_grad_() for t in rest]
    trained[1].data[3] = 0
    with pytest.raises(ValueError, match="singular block"):
        rk.road_lora_apply(h.detach() * 1, x, *trained, group_size=GROUP, inplace=True)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("view", [lambda h: h[:, :3], lambda h: (h * 1).unbind(0)[0][:, None]], ids=["leaf", "unbind"])
def test_views_that_autograd_cannot_write_are_named(view, batched):
    h, x, *rest = make(leading=(5, 3), bank=(2, 2) if batched else None)
    h = view(h.requires_grad_())
    x, before = x.view(-1, IN)[: len(h) * h.shape[1]].view(*h.shape[:-1], IN), h.detach().clone()
    ids = (torch.zeros(len(h), dtype=torch.long),) if batched else ()
    apply = rk.road_lora_apply_batched if batched else rk.road_lora_apply
    with pytest.raises(RuntimeError, match=r"h cannot be written in place: use inplace=False .*view"):
        apply(h, x, *rest, *ids, group_size=GROUP, inplace=True)
    assert torch.equal(h, before)
