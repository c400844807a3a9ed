"""Collects the ratios that the benchmarks record, writes them as JSON, and prints them against their bars."""

import json

import pytest

from . import record
from .bars_table import bars_table

_rows = []


@pytest.fixture
def record_bar():
    def record_one(group, bar, times):
        _rows.append({"group": group, "name": bar.name, "rival": bar.rival_name, "limit": bar.limit, **times})

    return record_one


def pytest_terminal_summary(terminalreporter):
    if not _rows:
        return
    result = {"machine": record.machine(), "rows": _rows}
    folder = record.folder(result["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    terminalreporter.write_line("\n" + bars_table(result))
