"""The demo where there is a GPU: it runs there, if one of the backends does."""

import subprocess
import sys

import torch


def test_the_demo_runs_on_the_gpu(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "road_kernels", "--quick"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "every request equals itself run alone with its adapter merged" in run.stdout
    assert f"decode on {torch.cuda.get_device_name()}" in run.stdout
