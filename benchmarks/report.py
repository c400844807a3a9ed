"""From recorded results to tables: python -m benchmarks.report [results/<processor>/cpu.json] [--readme].

--readme writes them, and demo.txt from the same folder, into README.md, whose numbers are never typed.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

import road_kernels as rk
from road_kernels.demo import processor

RESULTS = Path(__file__).parent / "results"


def machine() -> dict:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "isa": (rk.backend_info()["build"] or {}).get("cpu_isa"),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def compare(ratio: float) -> str:
    return f"{ratio:.2f} x the time" if ratio > 0.5 else f"{1 / ratio:.1f} x faster"


def table(result: dict) -> str:
    m = result["machine"]
    lines = [
        f"{m['processor']}, {m['threads']} threads, {m['isa']}, torch {m['torch']}. "
        "Medians; in brackets the ratio's p20 to p80.",
        "",
        "| work | us | against | measured | bar | |",
        "|---|---:|---|---|---|---|",
    ]
    for r in result["rows"]:
        spread = f"({r['ratio_p20']:.2f} to {r['ratio_p80']:.2f})"
        met = "met" if r["ratio"] <= r["limit"] else "**missed**"
        lines.append(
            f"| {r['name']} | {r['ours_us']:.{0 if r['ours_us'] > 99 else 1}f} | {r['rival']} | "
            f"{compare(r['ratio'])} {spread} | {compare(r['limit'])} | {met} |"
        )
    return "\n".join(lines)


def into(text: str, name: str, content: str) -> str:
    """text with what stands between <!-- name --> and <!-- /name --> replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    paths = [Path(p) for p in sys.argv[1:] if p != "--readme"]
    path = paths[0] if paths else max(RESULTS.glob("*/cpu.json"), key=lambda p: p.stat().st_mtime)
    bars = table(json.loads(path.read_text()))
    if "--readme" not in sys.argv:
        print(bars)
        return
    readme = Path(__file__).parent.parent / "README.md"
    demo = (path.parent / "demo.txt").read_text()
    readme.write_text(into(into(readme.read_text(), "benchmarks", bars), "demo", f"```text\n{demo}```"))


if __name__ == "__main__":
    main()
