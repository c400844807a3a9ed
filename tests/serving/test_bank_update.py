"""AdapterBank.update: new values in the slot of a loaded adapter, and beside running batches."""

import threading

import numpy as np
import pytest
import torch
from support import oracle
from support.backends import DEVICE
from support.bank_cases import WIDTHS, G, contents, make_adapter, make_bank, make_layers, unchanged
from support.expected import assert_close, expect_forward, f64
from support.problems import make_params, make_x

import road_kernels as rk
from road_kernels import Adapter, AdapterBank, BankFullError

LAYER = "layers.0.qkv"
FORMS = ("road_1", "road_2", "road_4", "table", "table_half")


def written(form):
    """The argument ``form`` of update."""
    return "table" if form == "table_half" else form


@pytest.mark.parametrize("form", FORMS)
def test_a_row_after_an_update_is_that_of_the_new_values(backend, form):
    bank = make_bank(compact=form in ("road_1", "table_half"))
    bank.load("ben", make_adapter(2))
    slot, before = bank.load("anna", make_adapter(1)), contents(bank)
    new = make_layers(form)
    ids = bank.ids(["anna", None, "ben"])
    assert bank.update("anna", new, form=written(form)) == slot == bank.slot("anna")
    assert unchanged(bank, before, bank.slot("ben")) and bank.free == 1
    for layer, width in WIDTHS.items():
        x = make_x(3, 5, width)
        want = expect_forward(x, *(t[None] for t in new[layer]), form, G, torch.tensor([0, -1, -1]))
        z = bank.rotate(layer, x, ids, backend=backend)[:2]
        # As after a load: the tables are rounded once themselves.
        assert_close(z, oracle.Result(want.value[:2], want.magnitude[:2]), torch.float32, units=6.0)
        assert torch.equal(z[1], x[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["road_1", "road_4", "table"])
def test_tables_are_rounded_once_from_float64(form, dtype):
    bank, new = make_bank(dtype=dtype, compact=False), make_layers(form, dtype=torch.float64)
    slot = bank.load("anna", make_adapter(1))
    bank.update("anna", new, form=form)
    for layer, width in WIDTHS.items():
        p, q = (f64(t) for t in new[layer])
        want = (p, q) if form == "table" else oracle.tables(p, q, form, width, G)
        for got, w in zip(bank.tables(layer), want, strict=True):
            rounded = torch.from_numpy(np.asarray(w)).to(dtype).double().numpy()
            np.testing.assert_allclose(f64(got[slot]), rounded, rtol=4e-16 if dtype == torch.float64 else 0)


def test_what_an_update_takes():
    """An Adapter, parameters in training, other names, inference mode: all as loading it."""
    adapter = make_adapter(3)
    trained = {f"model.{k}": tuple(t.clone().requires_grad_() for t in p) for k, p in adapter.layers.items()}
    want, bank = make_bank(), make_bank()
    want.load("anna", adapter)
    bank.load("anna", make_adapter(1))
    before = contents(bank)
    with torch.inference_mode():
        in_inference = {k: tuple(t.clone() for t in p) for k, p in adapter.layers.items()}
    for layers, form in (
        (adapter, None),
        (adapter, "road_1"),
        (trained, None),
        (trained, "road_1"),
        (in_inference, None),
    ):
        bank.update("anna", make_adapter(1))
        assert DEVICE != "cpu" or unchanged(bank, before)
        bank.update("anna", layers, form=form)
        for got, w in zip(contents(bank), contents(want), strict=True):
            # On a GPU an update computes its sines there, and a load on the CPU.
            torch.testing.assert_close(got, w, rtol=0 if DEVICE == "cpu" else 1e-6, atol=0 if DEVICE == "cpu" else 1e-7)
    assert not bank.tables(LAYER)[0].requires_grad


def test_a_partial_update_keeps_the_other_layers():
    bank = make_bank()
    slot = bank.load("anna", make_adapter(1))
    before = contents(bank)
    new = {LAYER: make_params("road_1", None, 24, seed=9)}
    with pytest.raises(ValueError, match=r"no parameters for 'layers\.0\.down'"):
        bank.update("anna", new)
    assert unchanged(bank, before)
    with bank.hold(["anna"]):  # to another slot, with the layers that stay
        moved = bank.update("anna", new, partial=True)
    assert moved != slot
    names = [name for name in WIDTHS for _ in "12"]
    for name, old, now in zip(names, before, contents(bank), strict=True):
        assert torch.equal(old[slot], now[moved]) == (name != LAYER)


def test_a_running_batch_keeps_its_version():
    bank, x = make_bank(capacity=2), make_x(1, 24)
    slot = bank.load("anna", make_adapter(1))
    old = bank.rotate(LAYER, x, bank.ids(["anna"]))
    with bank.hold(["anna"]) as first:
        assert bank.update("anna", make_adapter(2)) != slot
        new = bank.rotate(LAYER, x, bank.ids(["anna"]))
        assert torch.equal(bank.rotate(LAYER, x, first), old) and not torch.equal(old, new)
        with bank.hold(["anna"]) as second:
            before = contents(bank)
            with pytest.raises(BankFullError, match=r"'anna' \(a running batch holds its old values\): 1 of them evic"):
                bank.update("anna", make_adapter(3))
            assert unchanged(bank, before)
            assert torch.equal(bank.rotate(LAYER, x, second), new)
        bank.update("anna", make_adapter(3))  # nobody holds the second version
        assert torch.equal(bank.rotate(LAYER, x, first), old)
    assert bank.free == 1
    assert torch.equal(bank.rotate(LAYER, x, torch.tensor([slot])), x)


def test_a_hold_that_opens_during_a_write_waits_for_its_end(monkeypatch):
    bank, x, seen = make_bank(capacity=1), make_x(1, 24), []
    bank.load("anna", make_adapter(1))
    write = bank._store.write

    def read():
        with bank.hold(["anna"]) as ids:
            seen.append(bank.rotate(LAYER, x, ids))

    reader = threading.Thread(target=read)

    def slow(slot, rows):
        reader.start()
        reader.join(0.1)
        assert not seen
        write(slot, rows)

    monkeypatch.setattr(bank._store, "write", slow)
    bank.update("anna", make_adapter(2))
    reader.join()
    assert torch.equal(seen[0], bank.rotate(LAYER, x, bank.ids(["anna"])))


def test_an_interrupted_write_is_finished(monkeypatch):
    bank, calls = make_bank(), []
    bank.load("anna", make_adapter(1))
    write = bank._store.write

    def interrupted(slot, rows):
        calls.append(slot)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(slot, rows)

    monkeypatch.setattr(bank._store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.update("anna", make_adapter(2))
    want = make_bank()
    want.load("anna", make_adapter(1))
    want.update("anna", make_adapter(2))
    assert unchanged(bank, contents(want))
    with bank.hold(["anna"]):  # nothing waits for a write that is over
        pass


def test_one_copy_for_all_layers(monkeypatch):
    """The layers of a model are written by one call, not one each."""
    bank = AdapterBank({f"layers.{k}": 16 for k in range(50)}, 2, group_size=8)
    new = {f"layers.{k}": make_params("road_1", None, 16, seed=k) for k in range(50)}
    bank.load("anna", Adapter(new, group_size=8))
    calls, copy, tables = [], torch._foreach_copy_, rk.serving.bank_rows.tables_in
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda targets, sources: calls.append(len(targets)) or copy(targets, sources)
    )
    monkeypatch.setattr(rk.serving.bank_rows, "tables_in", lambda *a, **kw: calls.append("tables") or tables(*a, **kw))
    bank.update("anna", new)
    assert calls == ["tables", 2, 100]  # r1 and r2 side by side, rounded to the tables' dtype; then every row


def test_adapters_are_computed_on_the_cpu_whatever_the_backend_of_the_server(monkeypatch):
    """set_backend("cuda") serves no CPU tensors, and a bank on a GPU still loads and updates from the CPU."""
    bank = make_bank()
    monkeypatch.setattr(bank._store.rows, "device", torch.device("meta"))  # stands for a GPU
    monkeypatch.setattr(rk.backends.registry._forced, "name", "cuda" if DEVICE == "cpu" else "cpu")
    layers = {name: tuple(t.cpu() for t in pair) for name, pair in make_layers("road_1").items()}
    if DEVICE == "cpu":
        with pytest.raises(RuntimeError, match="cuda"):
            rk.road_tables(*layers[LAYER], group_size=G)
    for rows in (
        bank._store.rows.of_adapter(Adapter(layers, group_size=G), False),
        bank._store.rows.of_update(layers, None, False),
    ):
        assert rows.flat.is_meta and rows.flat.shape == (2, sum(WIDTHS.values()) // 2)


def test_readers_see_whole_versions():
    """Every result is one version in both layers, and versions only go up, with a slot for a second or not."""
    width = 8192
    for capacity in (1, 3):
        bank = AdapterBank({"a": width, "b": width}, capacity)
        bank.load("anna", constant(1.0, width))
        x, stop, wrong, seen, refused = torch.ones(1, width), threading.Event(), [], [], 0

        def read(bank=bank, x=x, stop=stop, wrong=wrong, seen=seen):
            last = 1.0
            try:
                while not stop.is_set():
                    with bank.hold(["anna"]) as ids:
                        values = {v.item() for layer in "ab" for v in bank.rotate(layer, x, ids).aminmax()}
                    if len(values) != 1 or min(values) < last:
                        wrong.append((last, values))
                    last = min(values)
                    seen.append(last)
            except BaseException as error:
                wrong.append(error)
                raise

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, 200):
                try:
                    bank.update("anna", constant(float(version), width))
                except BankFullError:
                    refused += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong, wrong[:3]
        assert len(seen) > 10
        assert bank.free == capacity - 1
        bank.update("anna", constant(500.0, width))
        assert bank.tables("a")[0][bank.slot("anna")].eq(500).all()


def constant(value: float, width: int) -> Adapter:
    pair = (torch.zeros(width // 2), torch.full((width // 2,), value))
    return Adapter({"a": pair, "b": pair})
