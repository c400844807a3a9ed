"""What the examples share in presenting results: where they lie, and the texts that README.md is made of."""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import record
from benchmarks.report.readme import into

README = Path(__file__).parent / "README.md"


def write(result: dict, folder: Path) -> Path:
    """result, with the machine named, as <folder>/<processor>.json; returns its path."""
    result = {"machine": record.machine(), **result}
    path = folder / f"{record.folder(result['machine']).name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def newest(folder: Path) -> Path:
    paths = list(folder.glob("*.json"))
    if not paths:
        raise SystemExit(f"no results in {folder}: run the example without --quick first")
    return max(paths, key=lambda p: json.loads(p.read_text())["machine"]["date"])


def mean_and_spread(values: list[float]) -> str:
    """The mean, and half the distance from the lowest to the highest seed."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def show(name: str, text: Callable[[dict], str], folder: Path) -> None:
    """The command line of a report, [--readme] [RESULTS.json]: prints a result, or puts it into README.md."""
    paths = [Path(p) for p in sys.argv[1:] if p != "--readme"]
    summary = text(json.loads((paths[0] if paths else newest(folder)).read_text()))
    if "--readme" in sys.argv:
        README.write_text(into(README.read_text(), name, summary))
    else:
        print(summary)
