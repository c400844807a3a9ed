"""The table of benchmarks/targets.py, for README.md, RESULTS.md and the end of `pytest benchmarks`."""


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
