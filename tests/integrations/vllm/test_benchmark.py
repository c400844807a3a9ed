"""python -m benchmarks.vllm, with the fewest samples: every server and provider is measured, and is right."""

import pytest

from benchmarks import vllm as benchmark
from benchmarks.harness import record
from benchmarks.report import model_tables


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    benchmark.main(["--quick", "--dtype", "float32", "--adapters", "2", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("*/vllm.json")
    result = record.load(path)
    found = [(row["server"], row["provider"]) for row in result["rows"]]
    assert found == [(name, provider) for name, (_, providers) in benchmark.SERVERS.items() for provider in providers]
    assert all(row["tokens_per_s"] > 0 and row["samples"] == 2 for row in result["rows"])
    assert all(row["error"] < 1e-5 for row in result["rows"] if row["provider"] != benchmark.MIXED)
    assert model_tables.vllm_table(result) in capsys.readouterr().out
