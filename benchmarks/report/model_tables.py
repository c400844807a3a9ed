"""Tables and plots of generation.py and training.py, out of their recorded results."""

import sys
from pathlib import Path

from ..harness import record
from . import plots, tables

MIB = 1 << 20


def generation_table(result: dict) -> str:
    """Tokens per second against requests, with the share of the base model's; a table for each dtype and mode."""
    parts = [tables.machine_line(result)]
    for title, rows in _groups(result["rows"], ("shape", "dtype", "mode", "prompt", "new_tokens")):
        shape, dtype, mode, prompt, new = title
        parts.append(
            f"Llama {shape}, {dtype}, {mode}, prompts of {prompt} tokens, {new} new ones; tokens/s of the batch, in "
            "brackets of what the model without adapters reaches:"
        )
        counts = sorted({r["requests"] for r in rows})
        lines = []
        for _, members in _groups(rows, ("provider",)):
            at = {r["requests"]: r for r in members}
            cells = [_tokens_cell(at[n]) if n in at else "" for n in counts]
            lines.append([_name(members[0]), *cells, _mib(members[0]["adapter_bytes"])])
        parts.append(tables.markdown(["requests, each its own adapter", *map(str, counts), "MiB an adapter"], lines))
        parts += _notes(rows)
    return "\n\n".join(parts)


def training_table(result: dict) -> str:
    """Time and memory of one step; a table for each shape and dtype."""
    parts = [tables.machine_line(result)]
    for (shape, dtype, tokens), rows in _groups(result["rows"], ("shape", "dtype", "tokens")):
        peak, how = _peak(rows)
        parts.append(f"Llama {shape}, {dtype}, one sequence of {tokens} tokens, AdamW. {how}")
        head = ["adapters", "parameters, k", "ms a step", "over no adapter", "MiB kept for backward", f"MiB {peak}"]
        lines = []
        for r in rows:
            ms = "fails" if r["step_ms"] is None else f"{r['step_ms']:.{0 if r['step_ms'] >= 100 else 1}f}"
            ms += " (once)" if r["samples"] == 1 else ""
            over = "" if r["over_base"] is None else f"{r['over_base']:.2f} x ({_range(r, 'over_base', '.2f')})"
            parameters = f"{r['trainable'] / 1e3:.0f}" if r["trainable"] else ""
            lines.append([_name(r), parameters, ms, over, _mib(r["saved_bytes"]), _mib(r[_PEAKS[peak]])])
        parts += [tables.markdown(head, lines), *_notes(rows)]
    return "\n\n".join(parts)


_PEAKS = {"at the peak": "peak_cuda_bytes", "at the peak of a step": "peak_rss_bytes"}


def _peak(rows: list[dict]) -> tuple[str, str]:
    if any(r["peak_cuda_bytes"] for r in rows):
        return "at the peak", "The peak is torch.cuda.max_memory_allocated with this provider alone, weights included."
    return "at the peak of a step", (
        "Kept for backward: tensors that autograd saves beside weights and parameters. The peak of a step is the "
        "growth of the process's resident memory in it."
    )


def _tokens_cell(row: dict) -> str:
    if row["tokens_per_s"] is None:
        return "not run"
    share = "" if row["of_base"] is None else f" ({100 * row['of_base']:.0f} %)"
    return f"{row['tokens_per_s']:.{0 if row['tokens_per_s'] >= 100 else 1}f}{share}"


def _range(row: dict, key: str, form: str) -> str:
    return f"{row[key + '_p20']:{form}} to {row[key + '_p80']:{form}}"


def _mib(count: int | None) -> str:
    return "" if not count else f"{count / MIB:.{0 if count >= 100 * MIB else 2 if count < MIB else 1}f}"


def _name(row: dict) -> str:
    return f"**{row['provider']}**" if row["ours"] else row["provider"]


def _groups(rows: list[dict], keys: tuple[str, ...]) -> list[tuple[tuple, list[dict]]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return list(groups.items())


def _notes(rows: list[dict]) -> list[str]:
    """Why something was not run, once per reason."""
    notes = dict.fromkeys(f"Not run: {r['provider']}: {r['note'].rstrip('.')}." for r in rows if r["note"])
    return ["\n".join(f"- {line}" for line in notes)] if notes else []


# ---- plots

SHADES = {
    "ours": (plots.OURS, "#e56b6f"),
    "RoAd": (plots.ROAD, "#f9c46b"),
    "LoRA": (plots.LORA, "#5fa8d3"),
    "no": ("black",),
}


def _figure(panels: int, result: dict, title: str, width: float):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(width, 4.4), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    machine = tables.machine_line(result).replace("**", "")
    figure.supxlabel(machine, fontsize=6.5, color=plots.OTHER, x=0.01, ha="left")
    return figure, list(axes[0])


def generation_plot(result: dict):
    """Tokens per second, and their share of the base model's, against requests; None without several of them."""
    groups = _groups(result["rows"], ("shape", "dtype", "mode", "prompt", "new_tokens"))
    groups = [(title, rows) for title, rows in groups if len({r["requests"] for r in rows}) > 1]
    if not groups:
        return None
    shape, _, _, prompt, new = groups[0][0]
    title = f"Llama {shape}, an adapter per request on all linear layers, {prompt} + {new} tokens"
    figure, axes = _figure(2 * len(groups), result, title, 2.4 + 7.8 * len(groups))
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
    for (provider,), points in _groups(rows, ("provider",)):
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
    """Time and memory of one step of the first shape and dtype, a bar for each provider that ran."""
    (shape, dtype, tokens), rows = _groups(result["rows"], ("shape", "dtype", "tokens"))[0]
    rows = [r for r in rows if r["step_ms"] is not None][::-1]
    if not rows:
        return None
    peak = _peak(rows)[0]
    columns = [("step_ms", 1, "ms a step"), ("saved_bytes", MIB, "MiB kept for backward")]
    columns += [(_PEAKS[peak], MIB, f"MiB {peak}")] if any(r[_PEAKS[peak]] for r in rows) else []
    title = f"A training step of Llama {shape}, {dtype}, one sequence of {tokens} tokens"
    figure, axes = _figure(len(columns), result, title, 3 + 3.6 * len(columns))
    colors = [plots.OURS if r["ours"] else plots.ROAD if "RoAd" in r["provider"] else plots.OTHER for r in rows]
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


TABLES = {"generation": generation_table, "training": training_table}
PLOTS = {"generation": generation_plot, "training": training_plot}


def show(name: str, path: Path) -> None:
    """Prints the table of a finished run and draws its plot beside it."""
    result = record.load(path)
    print(f"\n{TABLES[name](result)}\n")
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    if (figure := PLOTS[name](result)) is not None:
        figure.savefig(path.with_suffix(".png"), dpi=130)
        print(f"wrote {path.with_suffix('.png')}")
