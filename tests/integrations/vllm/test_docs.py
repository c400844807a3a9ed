"""The Python blocks of docs/vllm.md, one after the other, on a tiny model."""

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

from support.vllm_engine import stop
from support.vllm_models import ROAD

from road_kernels.integrations.vllm import _options

PAGE = Path(__file__).parents[3] / "docs" / "vllm.md"
SMALL = {
    "dtype": "float32",
    "max_model_len": 64,
    "enforce_eager": True,
    "worker_extension_cls": "road_kernels.integrations.vllm.RoadWorker",
}


def test_blocks_run(llama, tmp_path, monkeypatch):
    import vllm

    for name, source in zip(("anna", "ben"), ROAD, strict=False):
        (tmp_path / name).symlink_to(llama / source)
    monkeypatch.setattr(vllm, "LLM", functools.partial(vllm.LLM, **SMALL))
    names = {"MODEL": str(llama / "base"), "ADAPTERS": tmp_path}
    text = PAGE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) == 2
    try:
        for block in blocks:
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], PAGE.name, "exec"), names)
    finally:
        if "llm" in names:
            stop(names.pop("llm"))


def test_options_of_the_page_are_taken():
    options = re.search(r"--additional-config '(.*)'", PAGE.read_text())[1]
    found = _options.of_config(SimpleNamespace(additional_config=json.loads(options)))
    assert found == _options.Options(lora=False, group_sizes=(32, 64))
