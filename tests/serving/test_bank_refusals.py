"""Bad arguments of AdapterBank and Adapter raise with their message and leave the bank unchanged."""

import pytest
import torch
from support.bank_cases import WIDTHS, G, contents, make_adapter, make_bank, unchanged

from road_kernels import Adapter, AdapterBank

LAYERS = dict(make_adapter().layers)


def spoil(layer="layers.1.down", part=0, value=float("nan")):
    pair = [t.clone() for t in LAYERS[layer]]
    pair[part][-1] = value
    return {**LAYERS, layer: tuple(pair)}


def without(layer):
    return {name: pair for name, pair in LAYERS.items() if name != layer}


WIDE = {**LAYERS, "layers.1.down": (torch.zeros(12), torch.ones(12))}

# name: (the adapter, the error, a pattern of its message)
BAD = {
    "a missing layer": (
        lambda: Adapter(without("layers.1.down"), group_size=G),
        ValueError,
        "no parameters for 'layers.1.down'",
    ),
    "an unknown layer": (
        lambda: Adapter({**LAYERS, "lm_head": LAYERS["layers.0.qkv"]}, group_size=G),
        ValueError,
        "layers that the bank has not: 'lm_head'",
    ),
    "another width": (
        lambda: Adapter(WIDE, group_size=G),
        ValueError,
        "layer 'layers.1.down' is 16 features wide in the bank, got 24",
    ),
    "another group_size": (lambda: Adapter(LAYERS, group_size=4), ValueError, "group_size 4, but the bank 8"),
    "a NaN in theta": (lambda: Adapter(spoil(), group_size=G), ValueError, "layer 'layers.1.down' has a NaN"),
    "an infinite theta": (
        lambda: Adapter(spoil(value=float("inf")), group_size=G),
        ValueError,
        "layer 'layers.1.down' has",
    ),
    "an infinite alpha": (
        lambda: Adapter(spoil(part=1, value=-float("inf")), group_size=G),
        ValueError,
        "layer 'layers.1.down' has",
    ),
    "no adapter": (lambda: LAYERS, TypeError, "adapter must be an Adapter or the path of a checkpoint, got dict"),
    "None": (lambda: None, TypeError, "got NoneType"),
    "an empty path": (lambda: "", FileNotFoundError, "adapter_config.json"),
}


@pytest.mark.parametrize("what", ["load", "replace"])
@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_leave_the_bank_unchanged(name, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, error, message = BAD[name]
    bank = make_bank()
    bank.load("anna", make_adapter(5))
    before, names = contents(bank), bank.names
    with pytest.raises(error, match=message):
        getattr(bank, what)({"load": "ben", "replace": "anna"}[what], make())
    assert unchanged(bank, before)
    assert (bank.names, bank.free) == (names, 2)
    bank.load("carl", make_adapter(6))  # the bank still works
    bank.replace("anna", make_adapter(7))


@pytest.mark.parametrize("variant", ["road_2", "road_4"])
def test_compact_tables_hold_road_1_only(variant):
    bank = make_bank()
    before = contents(bank)
    with pytest.raises(ValueError, match=f"compact tables hold road_1 only, got {variant}: .* compact=False"):
        bank.load("anna", make_adapter(variant=variant))
    assert unchanged(bank, before) and bank.free == 3


def test_a_value_beyond_the_tables_dtype():
    bank = make_bank(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"a value beyond torch\.float16"):
        bank.load("anna", Adapter(spoil(part=1, value=1e5), group_size=G))
    assert bank.free == 3


def test_a_failing_write_gives_the_slot_back(monkeypatch):
    bank = make_bank()
    before, write, calls = contents(bank), bank._store.write, []

    def fail_once(slot, rows):
        write(slot, rows)
        calls.append(slot)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(bank._store, "write", fail_once)
    with pytest.raises(KeyboardInterrupt):
        bank.load("anna", make_adapter())
    assert unchanged(bank, before) and bank.free == 3 and len(bank) == 0


PAIR = (torch.zeros(8), torch.ones(8))
BAD_ADAPTERS = {
    "no mapping": (([PAIR],), TypeError, r"layers must map names to \(theta, alpha\), got list"),
    "no layers": (({},), ValueError, "at least one layer"),
    "a number for a name": (({1: PAIR},), TypeError, "must be a str, got 1"),
    "one tensor": (({"q": PAIR[0]},), TypeError, r"'q' must have a pair \(theta, alpha\), got Tensor"),
    "three tensors": (({"q": (*PAIR, PAIR[0])},), TypeError, "must have a pair"),
    "a list of numbers": (({"q": ([0.0], [1.0])},), TypeError, "layer 'q': theta must be a torch.Tensor, got list"),
    "integers": (({"q": (PAIR[0].int(), PAIR[1])},), TypeError, "layer 'q': theta must be float16"),
    "shapes that differ": (({"q": (PAIR[0], torch.ones(4))},), ValueError, "layer 'q': alpha must have the shape of"),
    "a bank of parameters": (
        ({"q": tuple(t[None] for t in PAIR)}, "road_1", 8),
        ValueError,
        r"layer 'q': theta must be \[P\], one",
    ),
    "no values": (
        ({"q": tuple(t.to("meta") for t in PAIR)}, "road_1", 8),
        ValueError,
        "layer 'q': theta .* meta device",
    ),
    "unknown variant": (({"q": PAIR}, "road_3"), ValueError, "variant must be"),
    "another group_size": (({"q": PAIR}, "road_1", 6), ValueError, "layer 'q': group_size must be even.*got 6"),
    "odd group_size": (({"q": PAIR}, "road_1", 3), ValueError, "got 3"),
    "no int": (({"q": PAIR}, "road_1", "8"), TypeError, "group_size must be an int, got str"),
    "no road_4": (({"q": (torch.zeros(9), torch.ones(9))}, "road_4", 2), ValueError, "layer 'q': theta must be"),
}


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_bad_parameters(name):
    arguments, error, message = BAD_ADAPTERS[name]
    with pytest.raises(error, match=message):
        Adapter(*arguments)


def test_an_adapter_keeps_what_was_checked():
    layers = dict(LAYERS)
    adapter = Adapter(layers, group_size=G)
    layers["layers.0.qkv"] = "something else"
    assert isinstance(adapter.layers["layers.0.qkv"], tuple)
    assert adapter.widths == WIDTHS
    with pytest.raises(TypeError):
        adapter.layers["x"] = PAIR


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"widths": [24]}, TypeError, "widths must map layer names .* got list"),
        ({"widths": {}}, ValueError, "at least one layer"),
        ({"widths": {"q": 16.0}}, TypeError, "widths must map str to int, got 'q': 16.0"),
        ({"widths": {"q": True}}, TypeError, "got 'q': True"),
        ({"widths": {3: 16}}, TypeError, "got 3: 16"),
        ({"widths": {"q": 12}}, ValueError, r"the width of layer 'q' \(12\), got 8"),
        ({"widths": {"q": 0}}, ValueError, r"the width of layer 'q' \(0\)"),
        ({"widths": {"q": -8}}, ValueError, r"the width of layer 'q' \(-8\)"),
        ({"capacity": 0}, ValueError, "capacity must be 1 or more, got 0"),
        ({"capacity": 2.0}, TypeError, "capacity must be an int, got float"),
        ({"capacity": True}, TypeError, "capacity must be an int, got bool"),
        ({"group_size": 3}, ValueError, "got 3"),
        ({"group_size": None}, TypeError, "group_size must be an int, got NoneType"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float16, .* got torch.int8"),
    ],
)
def test_bad_banks(changes, error, message):
    arguments = {"widths": WIDTHS, "capacity": 2, "group_size": G, **changes}
    with pytest.raises(error, match=message):
        AdapterBank(arguments.pop("widths"), arguments.pop("capacity"), **arguments)


def test_bad_calls():
    bank = make_bank()
    bank.load("anna", make_adapter())
    out = torch.full((2,), 7)
    for call, error, message in (
        (lambda: bank.load("anna", make_adapter()), ValueError, "named 'anna' is loaded: use replace"),
        (lambda: bank.load(None, make_adapter()), TypeError, "name must be a str, got NoneType"),
        (lambda: bank.replace("ben", make_adapter()), KeyError, "no adapter named 'ben' is loaded"),
        (lambda: bank.evict("ben"), KeyError, "no adapter named 'ben' is loaded"),
        (lambda: bank.slot("ben"), KeyError, "no adapter named 'ben' is loaded"),
        (lambda: bank.ids(["anna", "ben"], out=out), KeyError, "no adapter named 'ben' is loaded"),
        (lambda: bank.ids("anna"), TypeError, "names must be a sequence of names, got the str 'anna'"),
        (
            lambda: bank.ids(["anna"], out=[0]),
            TypeError,
            f"out must be an int32 or int64 tensor on {out.device}, got list",
        ),
        (lambda: bank.ids(["anna"], out=out.float()), TypeError, f"got torch.float32 on {out.device}"),
        (lambda: bank.ids(["anna"], out=out.to("meta")), TypeError, "got torch.int64 on meta"),
        (lambda: bank.ids(["anna"] * 3, out=out), ValueError, r"\[N\] with N >= 3, .* got \[2\]"),
        (lambda: bank.ids(["anna"], out=out[None]), ValueError, r"got \[1, 2\]"),
        (lambda: bank.tables("q"), KeyError, "no layer 'q' in this bank: it has 'layers.0.down', 'layers.0.qkv'"),
        (lambda: bank.rotate("q", torch.ones(1, 24), out[:1]), KeyError, "no layer 'q'"),
        (lambda: bank.rotate("layers.0.qkv", torch.ones(2, 16), out), ValueError, "r1 must be"),
        *(  # a device-side assertion on a GPU
            [
                (
                    lambda: bank.rotate("layers.0.qkv", torch.ones(2, 24), out),
                    IndexError,
                    "holds 7|out of range",
                )
            ]
            if out.device.type == "cpu"
            else []
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert out.tolist() == [7, 7]
    assert bank.names == ("anna",)
    with pytest.raises(KeyError, match="ben"), bank.hold(["anna", "ben"]):
        pass
    with pytest.raises(ValueError, match="N >= 3"), bank.hold(["anna"] * 3, out=out):
        pass
    bank.evict("anna")
    assert bank.free == 3  # the refused calls of hold pinned nothing
