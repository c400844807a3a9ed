"""AdapterBank: what a slot contains, how names and layers are found, and what a write leaves unchanged."""

import numpy as np
import pytest
import torch
from support import oracle
from support.backends import DEVICE
from support.bank_cases import WIDTHS, G, contents, make_adapter, make_bank, unchanged
from support.expected import assert_close, expect_forward, f64
from support.problems import make_params, make_x

import road_kernels as rk
from road_kernels import Adapter, AdapterBank, BankFullError

VARIANTS = ("road_1", "road_2", "road_4")


def on_cpu(adapter, layer):
    """On the CPU, where a bank computes its tables; a GPU's sines differ in the last digits."""
    return tuple(t.cpu() for t in adapter.layers[layer])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotating_with_a_slot_equals_rotating_with_the_parameters(backend, variant):
    bank, adapter = make_bank(compact=variant == "road_1"), make_adapter(variant=variant)
    bank.load("other", make_adapter(2, variant))
    slot = bank.load("anna", adapter)
    ids = bank.ids(["anna", None, "anna"])
    assert ids.tolist() == [slot, -1, slot]
    for layer, width in WIDTHS.items():
        x = make_x(3, 5, width)
        theta, alpha = (t[None] for t in adapter.layers[layer])
        want = expect_forward(x, theta, alpha, variant, G, torch.tensor([0, -1, 0]))
        for inplace in (False, True):
            y = x.clone()
            z = bank.rotate(layer, y, ids, inplace=inplace, backend=backend)
            # Tables are rounded once themselves: an ulp of r1 and r2 on top of the rounding of the sum.
            assert_close(z, want, torch.float32, units=6.0)
            assert torch.equal(z[1], x[1])
            assert torch.equal(y, z if inplace else x)


@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_the_tables_are_those_of_road_tables(compact):
    bank, adapter = make_bank(compact=compact), make_adapter()
    slot = bank.load("anna", adapter)
    for layer, width in WIDTHS.items():
        want = rk.road_tables(*on_cpu(adapter, layer), group_size=G)
        for got, w in zip(bank.tables(layer), want, strict=True):
            assert got.shape == (3, width // 2 if compact else width)
            np.testing.assert_array_equal(f64(got[slot]), f64(w) if compact else oracle.expand(f64(w), width, G))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_tables_of_another_dtype_are_rounded_once(dtype):
    bank, adapter = make_bank(dtype=dtype), make_adapter(dtype=torch.float64)
    slot = bank.load("anna", adapter)
    for layer in WIDTHS:
        theta, alpha = on_cpu(adapter, layer)
        for got, want in zip(bank.tables(layer), (alpha * theta.cos(), alpha * theta.sin()), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got[slot].cpu(), want.to(dtype))
    x = make_x(2, 24, dtype=torch.bfloat16)
    assert torch.equal(bank.rotate("layers.0.qkv", x, torch.tensor([2, 1])), x)


def test_float32_parameters_are_widened_before_the_cosine_of_a_float64_bank():
    bank, adapter = make_bank(dtype=torch.float64), make_adapter()
    slot = bank.load("anna", adapter)
    theta, alpha = (t.double() for t in on_cpu(adapter, "layers.0.qkv"))
    assert torch.equal(bank.tables("layers.0.qkv")[0][slot].cpu(), alpha * theta.cos())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_empty_slots_are_the_identity(backend, compact, dtype):
    bank = make_bank(compact=compact, dtype=dtype)
    bank.load("anna", make_adapter())
    bank.load("ben", make_adapter(2))
    bank.evict("anna")
    x = make_x(3, 24)
    x[0, 0], x[0, 1] = -0.0, 3e38
    z = bank.rotate("layers.1.qkv", x, torch.tensor([0, 2, 0]), backend=backend)
    assert torch.equal(z.view(torch.int32), x.view(torch.int32))


def test_writing_a_slot_changes_no_other(backend):
    bank = make_bank(capacity=4, compact=False)
    bank.load("anna", make_adapter(1, "road_4"))
    bank.load("ben", make_adapter(2, "road_1"))
    x = make_x(2, 7, 24)
    ids = bank.ids(["anna", "ben"])

    def results():
        return [bank.rotate(layer, x, ids, backend=backend) for layer in ("layers.0.qkv", "layers.1.qkv")]

    want, before = results(), contents(bank)
    bank.load("carl", make_adapter(3, "road_2"))
    bank.replace("carl", make_adapter(4, "road_4"))
    bank.evict("carl")
    assert all(map(torch.equal, results(), want))
    assert unchanged(bank, before)  # carl's former slots are the identity again


def test_nothing_is_ever_reallocated():
    bank = make_bank(capacity=2)
    addresses = [t.data_ptr() for layer in WIDTHS for t in bank.tables(layer)]
    out = torch.zeros(4, dtype=torch.int64)
    r1 = bank.tables("layers.0.qkv")[0]
    for seed in range(3):
        bank.load("anna", make_adapter(seed))
        assert bank.ids(["anna"], out=out) is out
        want = rk.road_tables(*on_cpu(make_adapter(seed), "layers.0.qkv"), group_size=G)[0]
        assert torch.equal(r1[out[0]].cpu(), want)  # through the table that was taken before the load
        bank.evict("anna")
    assert addresses == [t.data_ptr() for layer in WIDTHS for t in bank.tables(layer)]


def test_a_handle_on_a_layer(backend):
    bank = AdapterBank({"q": 64, "v": 32}, 2, group_size=16, device=DEVICE)
    layer = bank.layer("q")
    assert (layer.name, layer.group_size) == ("q", 16)
    assert (layer.r1, layer.r2) == bank.tables("q")
    assert "q" in repr(layer) and "[2, 32]" in repr(layer)
    x, ids = make_x(3, 64), torch.tensor([1, -1, 0], device=DEVICE)
    assert torch.equal(layer.rotate(x, ids, backend=backend), x)
    parameters = {"q": make_params("road_1", None, 64), "v": make_params("road_1", None, 32)}
    bank.load("a", Adapter(parameters, group_size=16))  # seen by the handle
    ids = bank.ids(["a", None, "a"])
    z = layer.rotate(x, ids, backend=backend)
    assert torch.equal(z, bank.rotate("q", x, ids, backend=backend))
    assert not torch.equal(z, x)
    assert layer.rotate(x, ids, inplace=True, backend=backend) is x and torch.equal(x, z)
    with pytest.raises(KeyError, match="no layer 'k'"):
        bank.layer("k")
    with pytest.raises(KeyError, match="no layer 'k'"):
        bank.rotate("k", x, ids)


def test_names_and_slots():
    bank = make_bank(capacity=2)
    assert (len(bank), bank.free, bank.names) == (0, 2, ())
    bank.load("anna", make_adapter(1))
    bank.load("ben", make_adapter(2))
    assert (len(bank), bank.free, bank.names) == (2, 0, ("anna", "ben"))
    assert "anna" in bank and "carl" not in bank
    assert {bank.slot("anna"), bank.slot("ben")} == {0, 1}
    assert bank.ids([]).shape == (0,)
    assert bank.ids([]).dtype == torch.int32
    assert bank.ids(["ben", None], out=torch.zeros(4, dtype=torch.int32)).tolist() == [bank.slot("ben"), -1, -1, -1]
    with pytest.raises(BankFullError, match="no slot of 2 is free for 'carl'"):
        bank.load("carl", make_adapter(3))
    with pytest.raises(BankFullError):
        bank.replace("ben", make_adapter(3))
    slot = bank.slot("anna")
    bank.evict("anna")
    assert (len(bank), bank.free, bank.names) == (1, 1, ("ben",))
    assert bank.replace("ben", make_adapter(3)) == slot == bank.slot("ben")
    assert bank.free == 1


def test_bytes_are_those_of_the_tables():
    entries = 2 * 5 * sum(WIDTHS.values())
    assert make_bank(capacity=5, compact=False).nbytes == 4 * entries
    assert make_bank(capacity=5).nbytes == 2 * entries
    assert make_bank(capacity=5, dtype=torch.bfloat16).nbytes == entries
    assert "0 of 5 adapters, 4 layers" in repr(make_bank(capacity=5))


def test_partial_adapters_leave_the_other_layers_alone():
    bank = make_bank()
    some = make_adapter(widths={"layers.1.down": 16})
    with pytest.raises(ValueError, match=r"no parameters for 'layers.0.down', 'layers.0.qkv', 'layers.1.qkv'"):
        bank.load("anna", some)
    bank.load("anna", some, partial=True)
    x, ids = make_x(2, 16), bank.ids(["anna", "anna"])
    assert torch.equal(bank.rotate("layers.0.down", x, ids), x)
    assert not torch.equal(bank.rotate("layers.1.down", x, ids), x)


@pytest.mark.parametrize("outside", ["model.", "base.model.", ""])
def test_layers_are_found_by_the_end_of_their_names(outside):
    given = {f"{outside}{name}": width for name, width in WIDTHS.items()}
    for bank_widths, adapter_widths in ((WIDTHS, given), (given, WIDTHS)):
        bank = AdapterBank(bank_widths, 1, group_size=G)
        adapter = make_adapter(widths=adapter_widths)
        bank.load("anna", adapter)
        for a, b in zip(bank_widths, adapter_widths, strict=True):
            want = rk.road_tables(*on_cpu(adapter, b), group_size=G)[0]
            assert torch.equal(bank.tables(a)[0][0].cpu(), want)


@pytest.mark.parametrize(
    ("bank_layers", "adapter_layers", "message"),
    {
        "two of the bank": (("a.x.q", "b.x.q"), ("x.q",), "'x.q' of the adapter may be any of 'a.x.q', 'b.x.q'"),
        "longer and shorter": (("q", "m.x.q"), ("x.q",), "may be any of 'm.x.q', 'q' of the bank"),
        "two of the adapter": (("q",), ("a.q", "b.q"), "'a.q' and 'b.q' of the adapter are both 'q' of the bank"),
        "no whole part": (("up.q",), ("p.q",), "layers that the bank has not: 'p.q'"),
        "unknown": (("q",), ("q", "k"), "layers that the bank has not: 'k'"),
        "many unknown": (("q",), tuple("abcde"), "'a', 'b', 'c' and 2 more"),
    }.values(),
)
def test_ambiguous_and_unknown_layers_are_refused(bank_layers, adapter_layers, message):
    bank = AdapterBank(dict.fromkeys(bank_layers, 16), 1, group_size=G)
    with pytest.raises(ValueError, match=message):
        bank.load("anna", make_adapter(widths=dict.fromkeys(adapter_layers, 16)), partial=True)


def test_an_exact_name_comes_before_longer_ones():
    widths = {"q": 16, "decoder.q": 16}
    bank, adapter = AdapterBank(widths, 1, group_size=G), make_adapter(widths=widths)
    bank.load("anna", adapter)
    for layer in widths:
        want = rk.road_tables(*on_cpu(adapter, layer), group_size=G)[1]
        assert torch.equal(bank.tables(layer)[1][0].cpu(), want)


def test_parameters_that_require_gradients_and_inference_mode():
    with torch.inference_mode():
        bank = make_bank()
        bank.load("anna", make_adapter())
    trained = {k: tuple(t.clone().requires_grad_() for t in pair) for k, pair in make_adapter(2).layers.items()}
    bank.load("ben", Adapter(trained, group_size=G))
    bank.evict("anna")
    assert not bank.tables("layers.0.qkv")[0].requires_grad
    with torch.inference_mode():
        bank.replace("ben", make_adapter())
        x = make_x(1, 24)
        bank.rotate("layers.0.qkv", x, bank.ids(["ben"]), inplace=True)


def test_the_default_device_is_followed_but_nothing_else():
    bank, adapter = make_bank(), make_adapter()
    with torch.device("meta"):
        bank.load("anna", adapter)
        assert bank.ids(["anna"]).device == bank.device != torch.device("meta")
    want = rk.road_tables(*on_cpu(adapter, "layers.0.qkv"), group_size=G)[0]
    assert torch.equal(bank.tables("layers.0.qkv")[0][0].cpu(), want)


def test_compile():
    bank = make_bank()
    bank.load("anna", make_adapter())

    def step(x, ids):
        return bank.rotate("layers.0.qkv", x * 2, ids, inplace=True) + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, ids = make_x(2, 24), bank.ids(["anna", None])
    assert torch.equal(compiled(x, ids), step(x, ids))
    bank.load("ben", make_adapter(2))
    ids = bank.ids(["ben", "anna"])
    assert torch.equal(compiled(x, ids), step(x, ids))  # the compiled graph reads the new slot
