"""The tables of benchmarks/targets.py (also at the end of `pytest benchmarks`) and of gpu_targets.py."""


def compare(ratio: float) -> str:
    return f"{ratio:.2f} x the time" if ratio > 0.5 else f"{1 / ratio:.1f} x faster"


def table_of_targets(result: dict) -> str:
    m = result["machine"]
    lines = [
        f"{m['processor']}, {m['threads']} threads, {m['isa']}, torch {m['torch']}. "
        "Medians; in brackets the ratio's p20 to p80.",
        "",
        "| work | us | against | measured | target | |",
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


UNITS = {
    "percent_of_clone": "% of clone",
    "percent_of_copy": "% of the fastest copy",
    "overhead": "% over",
    "us": "us",
    "speedup": "x faster",
}


def table_of_gpu_targets(result: dict) -> str:
    """result: the file that benchmarks/gpu_targets.py writes beside its rows."""
    lines = ["| work | backend | measured | target | |", "|---|---|---:|---:|---|"]
    for r in result["bars"]:
        scale = 100 if r["column"] == "overhead" else 1
        values = [f"{r[key] * scale:.3g}" for key in ("measured", "required")]
        bound = "at least" if r["at_least"] else "at most"
        met = "met" if r["met"] else "**missed**"
        lines.append(
            f"| {r['work']} | {r['backend']} | {values[0]} {UNITS[r['column']]} | {bound} {values[1]} | {met} |"
        )
    return "\n".join(lines)
