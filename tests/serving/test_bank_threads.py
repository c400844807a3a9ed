"""AdapterBank under threads: pinned slots do not change, and no reader sees half an adapter."""

import random
import threading

import pytest
import torch
from support.bank_cases import contents, make_adapter, make_bank, unchanged
from support.problems import make_x

from road_kernels import Adapter, AdapterBank, BankFullError

LAYER = "layers.0.qkv"


def test_a_pinned_slot_keeps_its_adapter_when_evicted():
    bank, x = make_bank(capacity=2), make_x(2, 24)
    slot = bank.load("anna", make_adapter(1))
    want = bank.rotate(LAYER, x, bank.ids(["anna", None]))
    with bank.hold(["anna", None]) as ids:
        bank.evict("anna")
        assert bank.names == () and bank.free == 1
        with pytest.raises(KeyError, match="'anna'"), bank.hold(["anna"]):
            pass
        assert bank.load("anna", make_adapter(2)) != slot
        with pytest.raises(BankFullError, match="no slot of 2 is free for 'carl': 1 of them evicted but still held"):
            bank.load("carl", make_adapter(3))
        assert torch.equal(bank.rotate(LAYER, x, ids), want)
    assert bank.free == 1
    assert torch.equal(bank.rotate(LAYER, x, ids), x)  # the identity again
    assert bank.load("carl", make_adapter(3)) == slot


def test_a_pinned_slot_keeps_its_adapter_when_replaced():
    bank, x = make_bank(capacity=3), make_x(1, 24)
    bank.load("anna", make_adapter(1))
    old = bank.rotate(LAYER, x, bank.ids(["anna"]))
    with bank.hold(["anna"]) as first:
        bank.replace("anna", make_adapter(2))
        with bank.hold(["anna", "anna"]) as second:
            new = bank.rotate(LAYER, x, second[:1])
            bank.replace("anna", make_adapter(3))
            assert bank.free == 0
            assert torch.equal(bank.rotate(LAYER, x, second[:1]), new)
            assert torch.equal(bank.rotate(LAYER, x, first), old)
        assert bank.free == 1
        assert torch.equal(bank.rotate(LAYER, x, first), old)
    assert bank.free == 2
    assert not torch.equal(old, new)


def test_a_slot_pinned_twice_is_free_after_both():
    bank = make_bank(capacity=1)
    before = contents(bank)
    bank.load("anna", make_adapter())
    outer = bank.hold(["anna"])
    with outer, bank.hold(["anna"]):
        bank.evict("anna")
    assert bank.free == 1 and unchanged(bank, before)
    with pytest.raises(ZeroDivisionError), bank.hold([None]):
        raise ZeroDivisionError
    bank.load("anna", make_adapter())
    with pytest.raises(ZeroDivisionError), bank.hold(["anna"]):
        raise ZeroDivisionError
    bank.evict("anna")
    assert bank.free == 1


def scale(value: float, width: int) -> Adapter:
    """z = value x, so that z tells which adapter was used, and whether it was one adapter."""
    half = width // 2
    return Adapter(
        {"a": (torch.zeros(half), torch.full((half,), value)), "b": (torch.zeros(half), torch.full((half,), value))}
    )


@pytest.mark.parametrize("evicting", [True, False], ids=["evicting", "replacing"])
def test_readers_see_whole_adapters_of_the_name_they_asked_for(evicting):
    """Name k has scales from 100 k on, one per version. One thread writes, two read; every result must be a single
    value, of the right name, in both layers."""
    width, names = 8192, ("anna", "ben", "carl")
    bank = AdapterBank({"a": width, "b": width}, capacity=5)
    for k, name in enumerate(names, 1):
        bank.load(name, scale(100.0 * k, width))
    x, stop, wrong, seen = torch.ones(3, width), threading.Event(), [], []

    def read(seed):
        pick = random.Random(seed)
        try:
            while not stop.is_set():
                batch = pick.choices((*names, None), k=3)
                try:
                    with bank.hold(batch) as ids:
                        results = [bank.rotate(layer, x, ids) for layer in ("a", "b")]
                except KeyError:  # not loaded at the moment
                    continue
                for row, name in enumerate(batch):
                    values = {value.item() for z in results for value in z[row].aminmax()}
                    expected = 100 * (names.index(name) + 1) if name else 1
                    if len(values) != 1 or not expected <= min(values) < expected + (50 if name else 1):
                        wrong.append((name, values))
                seen.append(len(batch))
        except BaseException as error:
            wrong.append(error)
            raise

    def write():
        pick = random.Random(0)
        for step in range(400):
            k = pick.randrange(3)
            adapter = scale(100.0 * (k + 1) + step % 50, width)
            try:
                if evicting and pick.random() < 0.5:
                    if names[k] in bank:
                        bank.evict(names[k])
                    bank.load(names[k], adapter)
                else:
                    (bank.replace if names[k] in bank else bank.load)(names[k], adapter)
            except BankFullError:  # readers still pin the slots of evicted adapters
                continue

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        write()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    assert len(seen) > 10
    assert bank.free == 5 - len(bank)
    for name in bank.names:
        bank.evict(name)
    for layer in ("a", "b"):
        r1, r2 = bank.tables(layer)
        assert (r1 == 1).all() and (r2 == 0).all()


def test_writers_take_turns():
    """Threads that load, replace and evict lose no slot, and every adapter ends up whole."""
    bank, errors = make_bank(capacity=6), []

    def write(k):
        try:
            for step in range(40):
                bank.load(f"name {k}", make_adapter(step))
                bank.replace(f"name {k}", make_adapter(step + 1))
                if step < 39:
                    bank.evict(f"name {k}")
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(bank.names) == ["name 0", "name 1", "name 2"]
    assert len({bank.slot(name) for name in bank.names}) == 3
    assert bank.free == 3
    alone = make_bank()
    alone.load("name", make_adapter(40))
    for name in bank.names:
        for layer in bank.widths:
            for got, want in zip(bank.tables(layer), alone.tables(layer), strict=True):
                assert torch.equal(got[bank.slot(name)], want[0])


def test_a_name_is_loaded_once(monkeypatch):
    """A second load of a name, started while the first one is computing, waits for it and is then refused."""
    bank, outcome, threads = make_bank(), [], []
    of_adapter = bank._store.rows.of_adapter

    def second():
        try:
            outcome.append(bank.load("anna", make_adapter(2)))
        except ValueError as error:
            outcome.append(str(error))

    def slow(*args):
        if not threads:
            threads.append(threading.Thread(target=second))
            threads[0].start()
            threads[0].join(0.1)
        return of_adapter(*args)

    monkeypatch.setattr(bank._store.rows, "of_adapter", slow)
    bank.load("anna", make_adapter(1))
    threads[0].join()
    assert outcome == ["an adapter named 'anna' is loaded: use replace, or evict it first"]
    assert bank.free == 2
