"""The parts of the vLLM integration that need no vLLM. The rest is in tests/integrations/vllm, with vLLM."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from road_kernels import Adapter
from road_kernels.integrations.vllm import _options, pack
from road_kernels.integrations.vllm._rows import RowIds
from road_kernels.integrations.vllm.worker import unpack


def test_vllm_is_not_imported():
    code = "import sys, road_kernels.integrations.vllm as r; assert 'vllm' not in sys.modules; print(r.__all__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "register" in run.stdout


def test_without_vllm_one_sentence_is_logged():
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "from road_kernels.integrations.vllm import register; register(); register()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[0].startswith("RoAd adapters are not available: vLLM cannot be imported")


# ---- ids


def ids_of(rows: RowIds) -> dict[int, list[int]]:
    return {group_size: ids.tolist() for group_size, ids in rows.calls}


def rows_of(slots: int, group_sizes=None, tokens: int = 6) -> RowIds:
    return RowIds(tokens, slots, torch.device("cpu"), group_sizes)


def test_ids_of_a_batch():
    rows = rows_of(4)
    for slot, kind in enumerate((64, 16, None, 64)):  # None: LoRA
        rows.put(slot, kind)
    rows.update([0, 2, -1, 1, 3, 2])
    assert ids_of(rows) == {64: [0, -1, -1, -1, 3, -1], 16: [-1, -1, -1, 1, -1, -1]}
    rows.update([3, -1, 2])
    assert ids_of(rows) == {64: [3, -1, -1, -1, 3, -1]}, "only the group sizes of the batch; the rest is stale"
    rows.update([2, -1])
    assert rows.calls == ()


def test_a_slot_that_another_kind_takes():
    rows = rows_of(2, tokens=3)
    for kind, want in ((64, {64: [1, 1, -1]}), (8, {8: [1, 1, -1]}), (None, {}), (64, {64: [1, 1, -1]})):
        rows.put(1, kind)
        rows.update([1, 1, -1])
        assert ids_of(rows) == want


def test_fixed_calls_keep_their_memory():
    rows = rows_of(1, (16, 64), tokens=2)
    calls, before = rows.calls, [ids.data_ptr() for _, ids in rows.calls]
    assert ids_of(rows) == {16: [-1, -1], 64: [-1, -1]}
    rows.put(0, 64)
    rows.update([0, -1])
    assert rows.calls is calls
    assert [ids.data_ptr() for _, ids in rows.calls] == before
    assert ids_of(rows) == {16: [-1, -1], 64: [0, -1]}


def test_ids_made_in_inference_mode_can_be_written_outside():
    with torch.inference_mode():
        rows = rows_of(1, tokens=2)
        rows.put(0, 64)
    rows.update([0, 0])
    assert ids_of(rows) == {64: [0, 0]}


# ---- options


def config(options=None, mode="NONE", graphs="NONE", device="cpu"):
    return SimpleNamespace(
        additional_config={} if options is None else {"road_kernels": options},
        compilation_config=SimpleNamespace(
            mode=SimpleNamespace(name=mode), cudagraph_mode=SimpleNamespace(name=graphs)
        ),
        device_config=SimpleNamespace(device_type=device),
    )


@pytest.mark.parametrize(
    ("given", "lora", "group_sizes"),
    [
        (config(), True, None),
        (config(mode="VLLM_COMPILE"), True, (64,)),
        (config(graphs="FULL_AND_PIECEWISE", device="cuda"), True, (64,)),
        (config(graphs="PIECEWISE"), True, None),  # no CUDA graphs on a CPU
        (config({"lora": False}), False, None),
        (config({"group_sizes": [64, 16, 64]}, mode="VLLM_COMPILE"), True, (16, 64)),
        (config({"group_sizes": [32]}), True, (32,)),
    ],
)
def test_options(given, lora, group_sizes):
    assert _options.of_config(given) == _options.Options(lora, group_sizes)


@pytest.mark.parametrize(
    "options", [{"loras": False}, {"lora": 0}, {"group_sizes": []}, {"group_sizes": [3]}, {"group_sizes": 64}, []]
)
def test_options_that_are_refused(options):
    with pytest.raises(ValueError, match=r"road_kernels in additional_config must|of road_kernels in additional"):
        _options.of_config(config(options))


# ---- packed layers


def test_packed_layers():
    pytest.importorskip("safetensors", reason="layers are packed by safetensors")
    layers = {"a.q": (torch.rand(4), torch.rand(4)), "a.k": (torch.rand(8).half(), torch.rand(8).half())}
    for given in (layers, Adapter(layers, group_size=4)):
        found = unpack(pack(given))
        assert found.keys() == layers.keys()
        for name, pair in layers.items():
            assert all(torch.equal(a, b) for a, b in zip(found[name], pair, strict=True))
    with pytest.raises(ValueError, match=r"must be bytes that .*pack made"):
        unpack(b"\x00" * 20)
