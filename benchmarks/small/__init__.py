"""Small cases of the benchmarks for pytest-benchmark: `pytest benchmarks`."""
