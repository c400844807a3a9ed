"""The grid and the table of benchmarks/vllm.py; tests/integrations/vllm runs it, with vLLM."""

import torch

from benchmarks import vllm as benchmark
from benchmarks.baselines import models
from benchmarks.harness.record import PLAIN
from benchmarks.report import model_tables, page

MACHINE = {"processor": "Some CPU", "threads": 2, "isa": "avx2", "torch": "2.13", "triton": None, "commit": "abc1234"}


def test_grid():
    points = [(p["server"], p["adapters"]) for p in benchmark.grid(benchmark.parse(["--quick", "--adapters", "1,4"]))]
    assert points == [
        ("without adapters", 0),
        ("LoRA and RoAd", 1),
        ("LoRA and RoAd", 4),
        ("RoAd", 1),
        ("RoAd", 4),
        ("RoAd, two group sizes", 4),
    ]


def test_requests_take_adapters_in_turn():
    road = models.Road({"q": torch.arange(3.0)[:, None]}, {"q": torch.ones(3, 1)})
    assert benchmark.cycled(road, 2, 5).theta["q"].flatten().tolist() == [0, 1, 0, 1, 0]
    assert benchmark.cycled(None, 2, 5) is None


def test_table(tmp_path):
    axes = {"vllm": "0.32.0", "shape": "small", "dtype": "bfloat16", "requests": 16, "prompt": 32, "new_tokens": 32}
    axes["clock"] = "processor"
    times = {"tokens_per_s": 512.4, "decode_ms": 31.25, "prefill_ms": 80.0}
    over = {"over_base": 1.02, "over_base_p20": 1.01, "over_base_p80": 1.03}
    rows = [
        axes | times | over | {"server": "RoAd", "adapters": 4, "provider": provider, "ours": provider != PLAIN}
        for provider in (PLAIN, benchmark.ROAD)
    ]
    result = {"benchmark": "vllm", "grid": "default", "left_out": [], "machine": MACHINE, "rows": rows}
    table = model_tables.vllm_table(result)
    assert "vLLM 0.32.0, Llama small, bfloat16, 16 requests at once" in table
    assert "(p20 to p80). Time is that of the processor" in table
    assert "| RoAd | no adapter |  | 512 | 31.25 |  | 80 |" in table
    assert "| RoAd | **RoAd** | 4 | 512 | 31.25 | 1.020 x (1.010 to 1.030) | 80 |" in table
    assert "### Serving in vLLM" in page.results_page({tmp_path: {"vllm": result}})
