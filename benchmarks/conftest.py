"""Collects the ratios that the benchmarks record, writes them as JSON, and prints them against their bars."""

import json
import re

import pytest

from .report import RESULTS, machine, table

_rows = []


@pytest.fixture
def record_bar():
    def record(group, bar, times):
        _rows.append({"group": group, "name": bar.name, "rival": bar.rival_name, "limit": bar.limit, **times})

    return record


def pytest_terminal_summary(terminalreporter):
    if not _rows:
        return
    result = {"machine": machine(), "rows": _rows}
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", result["machine"]["processor"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    terminalreporter.write_line("\n" + table(result))
