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


FUSED_PROVIDERS = {  # of gpu_fused_cases.py: heads
    "the neighbour alone": "no adapters, us",
    "64 requests": "fused, us",
    "rotation, then neighbour": "rotation, then the rest, us",
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


def table_of_fused_ops(result: dict) -> str | None:
    """result: what gpu_targets.py measured. Microseconds of the fused ops, or None where it measured none."""
    times: dict[str, dict[str, float]] = {}
    for r in result["rows"]:
        if r["work"].startswith("rotate_"):
            times.setdefault(r["work"], {})[r["provider"]] = r["us"]
    if not times:
        return None
    head = ("rows x features, backend", *FUSED_PROVIDERS.values())
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(FUSED_PROVIDERS)]
    for work, by in times.items():
        op, rest = work.split(", ", 1)
        cells = (f"{by[name]:.3g}" if by.get(name) else "" for name in FUSED_PROVIDERS)
        lines.append(f"| `{op}`, {rest} | {' | '.join(cells)} |")
    return "\n".join(lines)
