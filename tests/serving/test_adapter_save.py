"""Adapter.save: what is written is read back bit for bit, by us and by PEFT; checkpoints of compiled blocks load."""

import copy
import json
import re
import sys

import pytest
import torch
from support.bank_cases import WIDTHS, G, contents, make_adapter, make_bank, unchanged, write_checkpoint
from support.problems import make_x

import road_kernels as rk
from road_kernels import Adapter, AdapterBank

pytestmark = pytest.mark.cpu_only  # where checkpoints are written
safetensors = pytest.importorskip("safetensors.torch", reason="writing checkpoints needs safetensors")


def assert_same(read: Adapter, adapter: Adapter):
    assert (read.variant, read.group_size, read.widths) == (adapter.variant, adapter.group_size, adapter.widths)
    for name, pair in adapter.layers.items():
        for got, want in zip(read.layers[name], pair, strict=True):
            assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_what_is_saved_is_read_bit_for_bit(tmp_path, variant, dtype):
    adapter = make_adapter(variant=variant, dtype=dtype)
    adapter.save(tmp_path / "new" / "folder")
    assert_same(Adapter.from_peft(tmp_path / "new" / "folder"), adapter)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    make_adapter(2, variant, dtype=dtype).save(str(tmp_path / "new" / "folder"))  # over it
    assert_same(Adapter.from_peft(tmp_path / "new" / "folder"), make_adapter(2, variant, dtype=dtype))


def test_slices_and_parameters_are_saved(tmp_path):
    """Tensors of one storage, with gaps, in training."""
    flat = torch.randn(4, 64, requires_grad=True)
    adapter = Adapter({"q": (flat[0, ::2], flat[1, ::2]), "k": (flat[0, 32:], flat[1, 32:])})
    adapter.save(tmp_path)
    assert_same(Adapter.from_peft(tmp_path), adapter)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.up = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.up(torch.tanh(self.q(x)))


def make_model():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block(), Block()])})


MODEL = {f"layers.{k}.{name}": 64 for k in range(2) for name in ("q", "up")}
MADE = {
    "road_1": lambda: make_adapter(1, "road_1", MODEL),
    "road_2": lambda: make_adapter(1, "road_2", MODEL),
    "road_4": lambda: make_adapter(1, "road_4", MODEL),
    "one layer": lambda: make_adapter(1, "road_1", {"layers.1.q": 64}),
    "a composition": lambda: Adapter.compose([make_adapter(1, "road_1", MODEL), make_adapter(2, "road_2", MODEL)]),
    "an interpolation": lambda: Adapter.interpolate(
        [(make_adapter(1, "road_1", MODEL), 0.7), (make_adapter(2, "road_4", MODEL), 0.3)]
    ),
    "two halves": lambda: Adapter.from_tables(
        {
            name: rk.combine(
                [
                    (rk.road_tables(*make_adapter(1, "road_1", MODEL).layers[name], group_size=G), range(0, 16)),
                    (rk.road_tables(*make_adapter(2, "road_1", MODEL).layers[name], group_size=G), range(16, 32)),
                ],
                dim=64,
                group_size=G,
            )
            for name in MODEL
        },
        MODEL,
        group_size=G,
    ),
}


@pytest.mark.parametrize("what", MADE)
def test_peft_loads_it(tmp_path, what):
    """The same bits in PEFT's parameters, the same outputs, and the same bits when PEFT saves them again."""
    peft = pytest.importorskip("peft", reason="compares with PEFT itself")
    if not hasattr(peft, "RoadConfig"):
        pytest.skip(f"PEFT {peft.__version__} has no RoAd")
    adapter, plain = MADE[what](), make_model()
    adapter.save(tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "ours")
    config = model.peft_config["default"]
    assert (config.variant, config.group_size) == (adapter.variant, G)
    assert config.inference_mode
    x, found = make_x(3, 64), {}
    for name, module in model.named_modules():
        if hasattr(module, "road_theta"):
            name = name.removeprefix("base_model.model.")
            theta, alpha = module.road_theta["default"], module.road_alpha["default"]
            found[name] = (theta, alpha)
            assert not theta.requires_grad
            with torch.no_grad():
                ours = rk.road_apply(
                    plain.get_submodule(name)(x), *adapter.layers[name], variant=adapter.variant, group_size=G
                )
                torch.testing.assert_close(module(x), ours, rtol=1e-6, atol=2e-6)
    assert_same(Adapter(found, config.variant, config.group_size), adapter)
    model.save_pretrained(tmp_path / "theirs")
    assert_same(Adapter.from_peft(tmp_path / "theirs"), adapter)


def test_refused_saves(tmp_path):
    wrapped = make_adapter(widths={"a.q": 16, "a._orig_mod.q": 16})
    with pytest.raises(ValueError, match=r"'a\.q' and 'a\._orig_mod\.q' have one name in a checkpoint, 'a\.q'"):
        wrapped.save(tmp_path / "twice")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        make_adapter().save(tmp_path / "file")


def test_saving_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="writing a checkpoint needs the package safetensors"):
        make_adapter().save(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    adapter = make_adapter()
    adapter.save(tmp_path)

    def fail(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        make_adapter(2).save(tmp_path)
    monkeypatch.undo()
    assert_same(Adapter.from_peft(tmp_path), adapter)
    assert len(list(tmp_path.iterdir())) == 2


COMPILED = {re.sub(r"(\d)\.", r"\1._orig_mod.", name): width for name, width in WIDTHS.items()}


def test_compiled_blocks(tmp_path):
    """Of the checkpoint, of the bank or of both: the layers of one model whatever torch.compile put in between."""
    assert next(iter(COMPILED)) == "layers.0._orig_mod.qkv"
    adapter, want = make_adapter(), make_bank()
    want.load("anna", adapter)
    compiled = Adapter(dict(zip(COMPILED, adapter.layers.values(), strict=True)), group_size=G)
    folder = write_checkpoint(tmp_path / "checkpoint", compiled)
    assert_same(Adapter.from_peft(folder), adapter)
    whole = write_checkpoint(tmp_path / "whole", adapter, prefix="_orig_mod.base_model.model.")
    assert_same(Adapter.from_peft(whole), adapter)
    for given in (folder, whole, compiled, adapter):
        for widths in (WIDTHS, COMPILED, {f"model.{name}": w for name, w in COMPILED.items()}):
            bank = AdapterBank(widths, 3, group_size=G)
            bank.load("anna", given)
            assert list(bank.widths) == list(widths)  # its own names stay
            assert unchanged(bank, contents(want))
    compiled.save(tmp_path / "saved", base_model="some/model")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(WIDTHS) and config["base_model_name_or_path"] == "some/model"
    assert_same(Adapter.from_peft(tmp_path / "saved"), adapter)


def test_a_layer_with_and_without_a_wrapper(tmp_path):
    extra = {"base_model.model.layers.0._orig_mod.qkv.road_theta": torch.zeros(12)}
    with pytest.raises(ValueError, match=r"road_theta of layer 'layers\.0\.qkv' twice"):
        Adapter.from_peft(write_checkpoint(tmp_path / "checkpoint", extra=extra))
    with pytest.raises(ValueError, match=r"layers 'a\._orig_mod\.q' and 'a\.q' differ by a wrapper of torch's only"):
        AdapterBank({"a.q": 16, "a._orig_mod.q": 16}, 1, group_size=G)


def test_a_compiled_model_saved_by_peft(tmp_path):
    """The case itself: blocks compiled one by one under PEFT, saved, and served by a bank."""
    peft = pytest.importorskip("peft", reason="compares with PEFT itself")
    if not hasattr(peft, "RoadConfig"):
        pytest.skip(f"PEFT {peft.__version__} has no RoAd")
    config = peft.RoadConfig(group_size=G, target_modules=["q", "up"], init_weights=False)
    model = peft.get_peft_model(make_model(), config)
    layers = model.base_model.model["layers"]
    for k in range(len(layers)):
        layers[k] = torch.compile(layers[k], backend="eager")
    model.save_pretrained(tmp_path)
    assert any("_orig_mod" in key for key in safetensors.load_file(tmp_path / "adapter_model.safetensors"))
    bank = AdapterBank(MODEL, 1, group_size=G)
    bank.load("anna", tmp_path)
    theta, alpha = (getattr(layers[1]._orig_mod.q, f"road_{p}")["default"] for p in ("theta", "alpha"))
    assert torch.equal(bank.tables("layers.1.q")[1][0], rk.road_tables(theta, alpha, group_size=G)[1])
