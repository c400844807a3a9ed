"""From recorded results to the table that README shows: python -m benchmarks.report [results/<processor>/cpu.json]."""

import json
import subprocess
import sys
from pathlib import Path

import torch

import road_kernels as rk
from road_kernels.demo import processor


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


def main() -> None:
    results = Path(__file__).parent / "results"
    paths = [Path(p) for p in sys.argv[1:]] or sorted(results.glob("*/cpu.json"), key=lambda p: p.stat().st_mtime)[-1:]
    for path in paths:
        print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
