"""From recorded results to tables and plots: python -m benchmarks.report [--readme] [--results FOLDER].

Writes benchmarks/RESULTS.md, with every table of every machine, and the plots beside the results. --readme also writes
what stands between markers in README.md and docs/ (PAGES; in install.md the newest CPU's demo.txt): no number there is
typed by hand.
"""

import argparse
from pathlib import Path

from ..harness import record
from .draw import draw_all
from .page import results_page
from .readme import fill, parts_of

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/performance.md", "docs/install.md", "docs/fused.md")


def collect(root: Path) -> dict[Path, dict[str, dict]]:
    """Results by folder and benchmark; GPUs first, then the newest."""
    found = {
        folder: {path.stem: record.load(path) for path in sorted(folder.glob("*.json"))}
        for folder in sorted(p for p in root.glob("*") if p.is_dir())
    }

    def newest(results: dict) -> tuple[bool, str]:
        machines = [r["machine"] for r in results.values()]
        return any("gpu" in m for m in machines), max(m.get("date", "") for m in machines)

    return dict(sorted(((f, r) for f, r in found.items() if r), key=lambda item: newest(item[1]), reverse=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--readme", action="store_true", help="also the marked parts of README.md and docs/")
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    options = parser.parse_args(argv)
    found = collect(options.results)
    for folder, results in found.items():
        for path in draw_all(results, folder):
            print(f"wrote {path}")
    path = options.results.parent / "RESULTS.md"
    path.write_text(results_page(found))
    print(f"wrote {path}")
    if options.readme:
        parts = parts_of(found)
        for name in PAGES:
            page = ROOT / name
            page.write_text(fill(page.read_text(), parts))


if __name__ == "__main__":
    main()
