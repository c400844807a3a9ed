"""PEFT's RoAd checkpoints are read bit for bit."""

import contextlib
import copy
import functools

import pytest
import torch
from support.bank_cases import WIDTHS, G, contents, make_adapter, make_bank, unchanged, write_checkpoint
from support.problems import make_x

from road_kernels import Adapter, AdapterBank

pytestmark = pytest.mark.cpu_only  # where checkpoints are read
pytest.importorskip("safetensors", reason="reading checkpoints needs safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_a_checkpoint_is_read_bit_for_bit(tmp_path, variant, dtype):
    adapter = make_adapter(variant=variant, dtype=dtype)
    for folder in (
        write_checkpoint(tmp_path / "a", adapter),
        str(write_checkpoint(tmp_path / "b", adapter, prefix="")),
    ):
        read = Adapter.from_peft(folder)
        assert (read.variant, read.group_size, read.widths) == (variant, G, WIDTHS)
        for name, pair in adapter.layers.items():
            assert all(map(torch.equal, read.layers[name], pair))
        bank, other = make_bank(compact=False), make_bank(compact=False)
        bank.load("anna", folder)
        other.load("anna", adapter)
        assert unchanged(bank, contents(other))


def test_what_is_read_does_not_change_with_the_file(tmp_path):
    folder, adapter = write_checkpoint(tmp_path / "a"), make_adapter()
    read = Adapter.from_peft(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert all(
        torch.equal(a, b) for name in WIDTHS for a, b in zip(read.layers[name], adapter.layers[name], strict=True)
    )


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.up = torch.nn.Linear(64, 64), torch.nn.Linear(64, 128)

    def forward(self, x):
        return self.up(torch.tanh(self.q(x)))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(128, 10)  # for modules_to_save; not compared

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x)[..., :64])


@pytest.mark.parametrize("group_size", [2, 64])
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_adapters_that_peft_saved(tmp_path, variant, group_size):
    """A mixed batch served from the bank equals PEFT's own model with each adapter in turn."""
    peft = pytest.importorskip("peft", reason="compares with PEFT itself")
    if not hasattr(peft, "RoadConfig"):
        pytest.skip(f"PEFT {peft.__version__} has no RoAd")
    plain = Model()
    config = peft.RoadConfig(
        variant=variant, group_size=group_size, target_modules=["q", "up"], init_weights=False, modules_to_save=["head"]
    )
    tuned = peft.get_peft_model(copy.deepcopy(plain), config, adapter_name="anna")
    tuned.add_adapter("ben", config)
    tuned.save_pretrained(tmp_path)

    widths = {f"blocks.{k}.{name}": width for k in range(2) for name, width in (("q", 64), ("up", 128))}
    bank = AdapterBank(widths, capacity=3, group_size=group_size, compact=variant == "road_1")
    with pytest.raises(
        ValueError, match=r"also holds 'base_model.model.head.(weight|bias)', which is no RoAd parameter"
    ):
        bank.load("anna", tmp_path / "anna")
    for name in ("anna", "ben"):
        bank.load(name, Adapter.from_peft(tmp_path / name, ignore=["head"]))
    names = ["ben", None, "anna"]
    ids = bank.ids(names)
    for layer in widths:
        rotate = functools.partial(bank.rotate, layer)
        plain.get_submodule(layer).register_forward_hook(lambda module, x, h, rotate=rotate: rotate(h, ids))
    with torch.no_grad():
        x = make_x(3, 5, 64)
        got = plain(x)
        for row, name in enumerate(names):
            tuned.set_adapter(name or "anna")
            with tuned.disable_adapter() if name is None else contextlib.nullcontext():
                torch.testing.assert_close(got[row], tuned(x[row]), rtol=1e-5, atol=1e-5)
