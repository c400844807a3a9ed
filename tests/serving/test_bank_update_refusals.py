"""Bad arguments of AdapterBank.update raise with their message and leave the bank unchanged."""

import pytest
import torch
from support.bank_cases import contents, make_adapter, make_bank, make_layers, unchanged

from road_kernels import Adapter

LAYER = "layers.0.qkv"


def nan_in(layer, form="road_1"):
    layers = make_layers(form)
    layers[layer][1][-1] = float("nan")
    return layers


PAIR = (torch.zeros(12), torch.ones(12))
# name: (layers, further arguments, the error, a pattern of its message)
BAD = {
    "nothing": (lambda: {}, {}, ValueError, "at least one layer"),
    "a list": (lambda: [PAIR], {}, TypeError, r"layers must map names to \(theta, alpha\), got list"),
    "a list of tables": (lambda: [PAIR], {"form": "table"}, TypeError, r"map names to \(r1, r2\), got list"),
    "a folder": (lambda: "folder", {}, TypeError, "got str"),
    "an unknown layer": (lambda: make_layers("road_1") | {"head": PAIR}, {}, ValueError, "bank has not: 'head'"),
    "a missing layer": (lambda: {LAYER: PAIR}, {}, ValueError, "no parameters for"),
    "missing tables": (lambda: {LAYER: PAIR}, {"form": "table"}, ValueError, "no parameters for"),
    "another width": (
        lambda: make_layers("road_1") | {LAYER: (torch.zeros(8), torch.ones(8))},
        {},
        ValueError,
        "layer 'layers.0.qkv' is 24 features wide in the bank, got 16",
    ),
    "tables of another width": (
        lambda: make_layers("table_half") | {LAYER: (torch.zeros(8), torch.ones(8))},
        {"form": "table"},
        ValueError,
        "layer 'layers.0.qkv': r1 of tables must be .* for dim = 24, got",
    ),
    "full tables": (
        lambda: make_layers("table"),
        {"form": "table"},
        ValueError,
        r"layer 'layers.0.qkv': the bank's tables are compact, \[12\], got \[24\]",
    ),
    "a bank of tables": (
        lambda: make_layers("table_half") | {LAYER: tuple(t[None] for t in PAIR)},
        {"form": "table"},
        ValueError,
        r"layer 'layers.0.qkv': r1 must be \[D\] or \[D/2\], one adapter, got \[1, 12\]",
    ),
    "a bank of parameters": (
        lambda: make_layers("road_1") | {LAYER: tuple(t[None] for t in PAIR)},
        {},
        ValueError,
        r"layer 'layers.0.qkv': theta must be \[P\]",
    ),
    "integers": (lambda: make_layers("road_1") | {LAYER: (PAIR[0].int(), PAIR[1])}, {}, TypeError, "theta must be"),
    "integer tables": (
        lambda: make_layers("table_half") | {LAYER: (PAIR[0].int(), PAIR[1])},
        {"form": "table"},
        TypeError,
        "layer 'layers.0.qkv': r1 of tables must be float16",
    ),
    "no values": (
        lambda: make_layers("table_half") | {LAYER: tuple(t.to("meta") for t in PAIR)},
        {"form": "table"},
        ValueError,
        "layer 'layers.0.qkv': r1 and r2 are on the meta device",
    ),
    "another variant": (lambda: make_layers("road_2"), {"form": "road_2"}, ValueError, "compact tables hold road_1"),
    "no form": (lambda: make_layers("road_1"), {"form": "road_3"}, ValueError, "form must be .* got 'road_3'"),
    "another form than the adapter's": (
        lambda: make_adapter(),
        {"form": "table"},
        ValueError,
        "the form of an Adapter is its variant, 'road_1', got 'table'",
    ),
    "another group_size": (
        lambda: Adapter(make_layers("road_1"), group_size=4),
        {},
        ValueError,
        "group_size 4, but the bank 8",
    ),
    "a NaN": (lambda: nan_in("layers.1.down"), {}, ValueError, "layer 'layers.1.down' has a NaN"),
    "a NaN in a table": (
        lambda: nan_in("layers.1.down", "table_half"),
        {"form": "table"},
        ValueError,
        "layer 'layers.1.down' has a NaN",
    ),
}


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("name", BAD)
def test_bad_updates_leave_the_bank_unchanged(name, held):
    make, further, error, message = BAD[name]
    bank = make_bank()
    slot = bank.load("anna", make_adapter(1))
    before = contents(bank)
    with bank.hold(["anna"] if held else []), pytest.raises(error, match=message):
        bank.update("anna", make(), **further)
    assert unchanged(bank, before)
    assert (bank.names, bank.slot("anna"), bank.free) == (("anna",), slot, 2)
    assert bank.update("anna", make_adapter(2)) == slot  # the bank still works


def test_only_loaded_adapters_are_updated():
    bank = make_bank()
    before = contents(bank)
    with pytest.raises(KeyError, match="no adapter named 'anna' is loaded"):
        bank.update("anna", make_adapter())
    assert unchanged(bank, before) and bank.names == ()


def test_beyond_the_tables_dtype():
    bank = make_bank(dtype=torch.float16)
    bank.load("anna", make_adapter())
    layers = make_layers("road_1")
    layers[LAYER][1][3] = 1e5
    with pytest.raises(ValueError, match=r"layer 'layers.0.qkv' has .* a value beyond torch\.float16"):
        bank.update("anna", layers)
