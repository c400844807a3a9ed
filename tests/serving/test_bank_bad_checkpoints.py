"""Bad checkpoints raise with their message and leave the bank unchanged."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from support.bank_cases import WIDTHS, contents, make_adapter, make_bank, unchanged, write_checkpoint

from road_kernels import Adapter

pytestmark = pytest.mark.cpu_only  # where checkpoints are read
safetensors = pytest.importorskip("safetensors.torch", reason="reading checkpoints needs safetensors")


def rewrite(**changes):
    def spoil(folder):
        write_checkpoint(folder, **changes)

    return spoil


def config_text(text):
    return lambda folder: (folder / "adapter_config.json").write_bytes(text)


def weights_bytes(change):
    def spoil(folder):
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def weights(change):
    def spoil(folder):
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.load(path.read_bytes())
        change(tensors)
        safetensors.save_file(tensors, path)

    return spoil


def header(change):
    """Rewrites the header, the data as it is."""

    def apply(data):
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length])
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return weights_bytes(apply)


def entries(change):
    def apply(text):
        parsed = json.loads(text)
        change(parsed)
        return json.dumps(parsed).encode()

    return header(apply)


def pickled(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


THETA = "base_model.model.layers.1.down.road_theta"

# name: (what is done to a good folder, the error, a pattern of its message)
BAD = {
    "no folder": (shutil.rmtree, FileNotFoundError, "is not a folder: a RoAd checkpoint is one that holds"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), FileNotFoundError, "has no adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), FileNotFoundError, "safetensors$"),
    "pickled weights": (pickled, FileNotFoundError, "adapter_model.bin is pickled, which can run any code"),
    "a pickle under the other name": (weights_bytes(lambda b: pickle.dumps({"a": 1})), ValueError, "is damaged"),
    "no JSON": (config_text(b"{"), ValueError, "adapter_config.json is damaged"),
    "JSON without an end": (config_text(b"[" * 200_000), ValueError, "adapter_config.json is damaged"),
    "no UTF-8": (config_text(b"\xff\xfe{}"), ValueError, "adapter_config.json is damaged"),
    "a JSON list": (config_text(b"[]"), ValueError, "peft_type must be 'ROAD', got 'list'"),
    "LoRA": (rewrite(config={"peft_type": "LORA"}), ValueError, "not that of a RoAd adapter: .* got 'LORA'"),
    "unknown variant": (rewrite(config={"variant": "road_8"}), ValueError, "variant must be .* got 'road_8'"),
    "a variant that cannot be hashed": (rewrite(config={"variant": ["road_1"]}), ValueError, "variant must be"),
    "group_size is missing": (rewrite(config={"group_size": None}), ValueError, "an even int, 2 or more, got None"),
    "group_size is a float": (rewrite(config={"group_size": 8.0}), ValueError, "an even int, 2 or more, got 8.0"),
    "group_size is true": (rewrite(config={"group_size": True}), ValueError, "got True"),
    "group_size is odd": (rewrite(config={"group_size": 3}), ValueError, "got 3"),
    "group_size does not divide": (rewrite(config={"group_size": 10}), ValueError, "group_size must be even.*got 10"),
    "another group_size": (rewrite(config={"group_size": 4}), ValueError, "group_size 4, but the bank 8"),
    "another variant in the config": (
        rewrite(config={"variant": "road_2"}),
        ValueError,
        "group_size must be even.*got 8",
    ),
    "a variant that compact tables cannot hold": (
        rewrite(adapter=make_adapter(variant="road_4")),
        ValueError,
        "compact tables hold road_1 only, got road_4",
    ),
    "empty weights": (weights_bytes(lambda b: b""), ValueError, "is damaged, cut short"),
    "weights without the last byte": (weights_bytes(lambda b: b[:-1]), ValueError, "is damaged, cut short"),
    "half the weights": (weights_bytes(lambda b: b[: len(b) // 2]), ValueError, "is damaged, cut short"),
    "a header of exabytes": (weights_bytes(lambda b: b"\xff" * 7 + b"\x0f" + b[8:]), ValueError, "is damaged"),
    "a header without an end": (header(lambda text: b"[" * 200_000), ValueError, "is damaged"),
    "a header that is a list": (header(lambda text: b"[]"), ValueError, "the header is no JSON object"),
    "a header of 17 MB": (header(lambda text: text + b" " * (17 << 20)), ValueError, "with a header of 17"),
    "a tensor twice in the header": (
        header(lambda text: text.rstrip()[:-1] + b"," + text[1:]),
        ValueError,
        "the header has a name twice",
    ),
    "a tensor that is no entry": (entries(lambda h: h.update({THETA: 3})), ValueError, "has no data_offsets"),
    "offsets that run backwards": (
        entries(lambda h: h[THETA]["data_offsets"].reverse()),
        ValueError,
        r"road_theta' has the data_offsets",
    ),
    "two tensors of one place": (
        entries(lambda h: h[THETA].update(data_offsets=[0, 32])),
        ValueError,
        "is damaged.* begins at 0 and not at",
    ),
    "data of no tensor": (entries(lambda h: h.pop(THETA)), ValueError, "is damaged"),
    "a shape that is not its size": (
        entries(lambda h: h[THETA].update(shape=[1 << 40])),
        ValueError,
        "is damaged",
    ),
    "an unknown dtype": (entries(lambda h: h[THETA].update(dtype="F33")), ValueError, "is damaged"),
    "a config of 17 MB": (config_text(b" " * (17 << 20)), ValueError, "adapter_config.json is damaged: larger than"),
    "bytes behind the end": (weights_bytes(lambda b: b + b"\0"), ValueError, "is damaged"),
    "no tensors": (weights(dict.clear), ValueError, "holds no RoAd parameter"),
    "theta alone": (weights(lambda w: w.pop(THETA)), ValueError, "has no road_theta of layer 'layers.1.down'"),
    "a layer twice": (
        weights(lambda w: w.update({"layers.1.down.road_theta": w[THETA].clone()})),
        ValueError,
        "holds road_theta of layer 'layers.1.down' twice",
    ),
    "integers": (
        weights(lambda w: w.update({THETA: w[THETA].int()})),
        TypeError,
        "'layers.1.down': theta must be float",
    ),
    "another length": (
        weights(lambda w: w.update({THETA: w[THETA][:4].clone()})),
        ValueError,
        "alpha must have the shape",
    ),
    "a matrix": (
        weights(lambda w: w.update({THETA: w[THETA][None]})),
        ValueError,
        "alpha must have the shape of theta",
    ),
    "a NaN": (weights(lambda w: w[THETA].fill_(float("nan"))), ValueError, "'layers.1.down' has a NaN"),
    "an infinity in the last entry": (weights(lambda w: w[THETA][-1:].fill_(float("inf"))), ValueError, "has a NaN"),
    "weights of a head": (
        rewrite(extra={"base_model.model.head.weight": torch.ones(2, 2)}),
        ValueError,
        "also holds 'base_model.model.head.weight', which is no RoAd parameter. If 'head' is served",
    ),
    "a missing layer": (
        rewrite(adapter=make_adapter(widths=dict(list(WIDTHS.items())[1:]))),
        ValueError,
        "no parameters for 'layers.0.qkv'",
    ),
    "an unknown layer": (
        rewrite(adapter=make_adapter(widths={**WIDTHS, "layers.2.qkv": 24})),
        ValueError,
        "layers that the bank has not: 'layers.2.qkv'",
    ),
    "another width": (
        rewrite(adapter=make_adapter(widths={**WIDTHS, "layers.0.down": 24})),
        ValueError,
        "layer 'layers.0.down' is 16 features wide in the bank, got 24",
    ),
}


@pytest.mark.parametrize("what", ["load", "replace"])
@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_leave_the_bank_unchanged(name, what, tmp_path):
    spoil, error, message = BAD[name]
    folder = write_checkpoint(tmp_path / "checkpoint")
    bank = make_bank()
    bank.load("anna", make_adapter(2))
    before = contents(bank)
    spoil(folder)
    with pytest.raises(error, match=message):
        getattr(bank, what)({"load": "ben", "replace": "anna"}[what], folder)
    assert unchanged(bank, before)
    assert (bank.names, bank.free) == (("anna",), 2)


def test_every_way_to_cut_a_file_short(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    path = folder / "adapter_model.safetensors"
    whole, bank = path.read_bytes(), make_bank()
    before = contents(bank)
    for length in {0, 1, 7, 8, 9, len(whole) - 1, *range(10, len(whole), 97)}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged, cut short"):
            bank.load("anna", folder)
    assert unchanged(bank, before) and bank.free == 3


@pytest.mark.parametrize("name", [THETA, "base_model.model.embed.weight"])
def test_nothing_is_read_of_a_file_that_is_refused(name, tmp_path):
    """Of a terabyte, if sparse: its header is enough to say no."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    size = 1 << 40
    text = json.dumps({name: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    message = "also holds|holds 1099511627776 bytes of RoAd parameters, more than max_bytes = 1073741824"
    with pytest.raises(ValueError, match=message):
        Adapter.from_peft(folder)


def test_max_bytes(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", extra={"base_model.model.head.weight": torch.ones(1000)})
    adapter = Adapter.from_peft(folder, ignore=["head"])
    size = sum(t.nbytes for pair in adapter.layers.values() for t in pair)
    again = Adapter.from_peft(folder, ignore=["head"], max_bytes=size)  # the head is neither read nor counted
    assert all(
        torch.equal(a, b) for name in WIDTHS for a, b in zip(adapter.layers[name], again.layers[name], strict=True)
    )
    with pytest.raises(ValueError, match=f"{size} bytes of RoAd parameters, more than max_bytes = {size - 1}"):
        Adapter.from_peft(folder, ignore=["head"], max_bytes=size - 1)


def test_ignored_modules(tmp_path):
    extra = {f"base_model.model.{key}": torch.ones(2) for key in ("score.out.weight", "score.bias", "scores.weight")}
    folder = write_checkpoint(tmp_path / "checkpoint", extra=extra)
    with pytest.raises(ValueError, match="'scores' is served in another way"):
        Adapter.from_peft(folder, ignore=["score"])
    assert Adapter.from_peft(folder, ignore=("score", "scores")).widths == WIDTHS
    with pytest.raises(TypeError, match="ignore must be a collection of module names, got the str 'score'"):
        Adapter.from_peft(folder, ignore="score")


def test_without_safetensors(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package safetensors: pip install safetensors"):
        make_bank().load("anna", folder)
