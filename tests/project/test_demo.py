"""The demo runs as README says."""

import re
import subprocess
import sys

from road_kernels.demo import best_device, processor


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
    assert f"decode on {processor(best_device())}:" in run.stdout  # a GPU, where a backend has kernels for it
    assert run.stdout.splitlines()[-1].startswith("next: p")
