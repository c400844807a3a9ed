"""Layers packed into one output: their tables lie side by side, and their adapters are loaded by their own names."""

import copy
import pickle

import pytest
import torch
from support.bank_cases import G, make_adapter
from support.problems import make_x

from road_kernels import AdapterBank

WIDTHS = {"o": 16, "k": 8, "q": 24, "up": 16}  # packed in another order than here
PACKED = {"qk": ["q", "k"]}


def make_bank(compact, packed=PACKED, **kw):
    return AdapterBank(WIDTHS, 3, group_size=G, compact=compact, packed=packed, **kw)


def filled(bank):
    """Two adapters, the second without a layer of the packed ones, and then updated."""
    bank.load("anna", make_adapter(1, "road_1", WIDTHS))
    bank.load("ben", make_adapter(2, "road_1", {name: WIDTHS[name] for name in ("k", "up")}), partial=True)
    bank.update("anna", make_adapter(3, "road_1", {"q": 24}), partial=True)
    return bank


@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_tables_of_a_packed_name_are_those_of_its_layers(compact):
    bank, apart = filled(make_bank(compact)), filled(make_bank(compact, None))
    for part, (packed, *both) in enumerate(zip(bank.tables("qk"), *map(apart.tables, "qk"), strict=True)):
        assert torch.equal(packed, torch.cat(both, 1))
        start = 0
        for layer in PACKED["qk"]:
            view = bank.tables(layer)[part]
            assert view.data_ptr() == packed[:, start:].data_ptr() and view.stride() == packed.stride()
            start += view.shape[1]
    for layer in WIDTHS:
        assert all(map(torch.equal, bank.tables(layer), apart.tables(layer)))
    assert bank.nbytes == apart.nbytes
    bank.evict("anna")
    assert (bank.tables("qk")[0][0] == 1).all() and (bank.tables("qk")[1][0] == 0).all()


@pytest.mark.parametrize("compact", [True, False], ids=["compact", "full"])
def test_one_rotation_of_a_packed_output_is_that_of_each_part(backend, compact):
    bank = filled(make_bank(compact))
    ids, x = bank.ids(["ben", None, "anna"]), make_x(3, 5, 32)
    z = bank.rotate("qk", x, ids, backend=backend)
    parts = zip(PACKED["qk"], x.split([24, 8], -1), strict=True)
    assert torch.equal(z, torch.cat([bank.rotate(name, part, ids, backend=backend) for name, part in parts], -1))
    y = x.clone()
    bank.layer("qk").rotate(y, ids, inplace=True, backend=backend)
    assert torch.equal(y, z) and torch.equal(z[1], x[1]) and not torch.equal(z[2], x[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_copies_are_packed_too(copied):
    bank = filled(make_bank(False))
    other = copied(bank)
    assert all(map(torch.equal, other.tables("qk"), bank.tables("qk")))
    other.evict("anna")
    assert not torch.equal(other.tables("qk")[0], bank.tables("qk")[0])


@pytest.mark.parametrize(
    ("packed", "error", "message"),
    [
        ([("qk", ["q", "k"])], TypeError, "packed must map names to the layers packed together, got list"),
        ({"qk": "qk"}, TypeError, "packed must map str to a list of layers, got 'qk': 'qk'"),
        ({"qk": []}, TypeError, r"packed must map str to a list of layers, got 'qk': \[\]"),
        ({"q": ["q", "k"]}, ValueError, "packed has the name 'q', which is that of a layer"),
        ({"qv": ["q", "v"]}, ValueError, r"packed\['qv'\] has 'v', which is no layer of the bank"),
        ({"a": ["q", "k"], "b": ["k"]}, ValueError, "layer 'k' is packed twice, in 'a' and 'b'"),
        ({"a": ["q", "q"]}, ValueError, "layer 'q' is packed twice, in 'a' and 'a'"),
    ],
)
def test_refusals(packed, error, message):
    with pytest.raises(error, match=message):
        make_bank(True, packed)
