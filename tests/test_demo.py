"""The demonstration and the examples of README run as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_demo(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "road_kernels", "--quick"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "every request equals itself run alone with its adapter merged" in run.stdout
    for way in (
        "no adapter",
        "RoAd batched",
        "RoAd, eager",
        "LoRA rank 8, batched matmul",
        "LoRA rank 8, adapter by adapter",
    ):
        assert re.search(rf"{way}.* \d+", run.stdout), way


def readme_examples():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("code", readme_examples(), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_readme(code):
    exec(compile(code, "README.md", "exec"), {})


def test_readme_has_examples():
    assert len(readme_examples()) >= 4
