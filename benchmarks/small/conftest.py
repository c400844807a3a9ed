"""Collects the ratios that the benchmarks record, writes them as JSON and CSV, and prints them beside their targets."""

import pytest

from ..harness import record
from ..report.targets_table import table_of_targets

_rows = []


@pytest.fixture
def record_target():
    def record_one(group, target, times):
        _rows.append(
            {"group": group, "name": target.name, "rival": target.baseline_name, "limit": target.limit, **times}
        )

    return record_one


def pytest_terminal_summary(terminalreporter):
    if not _rows:
        return
    path = record.save("cpu", _rows)
    terminalreporter.write_line(f"\n{table_of_targets(record.load(path))}\n\nwrote {path}")
