"""What the examples share in presenting results: where they lie, and the texts that README.md is made of."""

import json
import statistics
from pathlib import Path

from benchmarks import record
from benchmarks.report import into

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


def into_readme(name: str, text: str) -> None:
    README.write_text(into(README.read_text(), name, text))
