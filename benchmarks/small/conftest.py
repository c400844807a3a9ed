"""Collects the ratios that the benchmarks record, writes them as JSON, and prints them against their bars."""

import pytest

from ..harness import record
from ..report.targets_table import bars_table

_rows = []


@pytest.fixture
def record_bar():
    def record_one(group, bar, times):
        _rows.append({"group": group, "name": bar.name, "rival": bar.rival_name, "limit": bar.limit, **times})

    return record_one


def pytest_terminal_summary(terminalreporter):
    if not _rows:
        return
    path = record.save("cpu", _rows)
    terminalreporter.write_line(f"\n{bars_table(record.load(path))}\n\nwrote {path}")
