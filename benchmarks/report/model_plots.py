"""The plots of generation.py and training.py."""

from .figure import LORA, OTHER, OURS, ROAD, new_figure
from .model_tables import MIB, PEAKS, grouped, peak_of

SHADES = {
    "ours": (OURS, "#e56b6f", "#a4133c"),
    "RoAd": (ROAD, "#f9c46b"),
    "LoRA": (LORA, "#5fa8d3"),
    "no": ("black", "#777777"),
}


def generation_plot(result: dict):
    """Tokens per second, and their share of the base model's, against requests; None if there is only one count."""
    groups = grouped(result["rows"], ("shape", "dtype", "mode", "prompt", "new_tokens"))
    groups = [(title, rows) for title, rows in groups if len({r["requests"] for r in rows}) > 1]
    if not groups:
        return None
    shape, _, _, prompt, new = groups[0][0]
    title = f"Llama {shape}, an adapter per request on all linear layers, {prompt} + {new} tokens"
    figure, axes = new_figure(2 * len(groups), result, title, 2.4 + 7.8 * len(groups))
    legend = {}
    for k, ((_, dtype, mode, *_), rows) in enumerate(groups):
        for axis, key, what in (
            (axes[2 * k], "tokens_per_s", f"{dtype}, {mode}: tokens/s of the batch"),
            (axes[2 * k + 1], "of_base", "share of the model without adapters"),
        ):
            legend |= _lines(axis, rows, key)
            axis.set_title(what, loc="left")
            axis.set_xlabel("requests, each its own adapter")
            axis.set_ylim(bottom=0)
            axis.grid(color="#e6e6e6", linewidth=0.7)
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _lines(axis, rows: list[dict], key: str) -> dict:
    """Medians as lines, p20 to p80 as bars. Returns the lines by provider."""
    lines, seen = {}, []
    for (provider,), points in grouped(rows, ("provider",)):
        kind = "ours" if points[0]["ours"] else provider.split(",")[0].split()[0]
        color = SHADES[kind][seen.count(kind) % len(SHADES[kind])]
        seen.append(kind)
        points = sorted((r for r in points if r[key] is not None), key=lambda r: r["requests"])
        xs, middle, low, high = ([r[k] for r in points] for k in ("requests", key, key + "_p20", key + "_p80"))
        if xs:
            style = {"linewidth": 2.2, "zorder": 5} if kind == "ours" else {"linewidth": 1.3, "linestyle": "--"}
            (lines[provider],) = axis.plot(xs, middle, color=color, marker="o", markersize=4, **style)
            axis.vlines(xs, low, high, color=color, linewidth=0.9, alpha=0.5)
    axis.set_xscale("log", base=2)
    counts = sorted({r["requests"] for r in rows})
    axis.set_xticks(counts, [str(n) for n in counts])
    return lines


def training_plot(result: dict):
    """Time and memory of one step of the first shape and dtype, a bar per provider that ran."""
    (shape, dtype, tokens), rows = grouped(result["rows"], ("shape", "dtype", "tokens"))[0]
    rows = [r for r in rows if r["step_ms"] is not None][::-1]
    if not rows:
        return None
    peak = peak_of(rows)[0]
    columns = [("step_ms", 1, "ms a step"), ("saved_bytes", MIB, "MiB kept for backward")]
    columns += [(PEAKS[peak], MIB, f"MiB {peak}")] if any(r[PEAKS[peak]] for r in rows) else []
    title = f"A training step of Llama {shape}, {dtype}, one sequence of {tokens} tokens"
    figure, axes = new_figure(len(columns), result, title, 3 + 3.6 * len(columns))
    colors = [OURS if r["ours"] else ROAD if "RoAd" in r["provider"] else OTHER for r in rows]
    for axis, (key, unit, label) in zip(axes, columns, strict=True):
        axis.barh(range(len(rows)), [(r[key] or 0) / unit for r in rows], color=colors)
        if key == "step_ms":
            low, high = ([abs(r[key + end] - r[key]) for r in rows] for end in ("_p20", "_p80"))
            middle = [r[key] for r in rows]
            axis.errorbar(middle, range(len(rows)), xerr=(low, high), fmt="none", ecolor="black", linewidth=1)
        axis.set_yticks(range(len(rows)), [r["provider"] for r in rows] if axis is axes[0] else [""] * len(rows))
        axis.set_title(label, loc="left")
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
    return figure
