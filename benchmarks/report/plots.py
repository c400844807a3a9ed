"""The plots of layer.py and single_op.py: overhead over the layer alone, share of the clone's bandwidth, bytes
resident."""

from ..harness.record import CEILINGS, PLAIN
from .figure import LORA, OTHER, OURS, new_figure
from .tables import group_with_most

# Shades by family, the darkest first; the ways of one family differ in shade and marker.
SHADES = {
    "ours": (OURS, "#e56b6f", "#f0a6a8", "#7d0013", "#d1495b"),
    "RoAd": ("#bc5f04", "#f48c06", "#f9c46b"),
    "LoRA": ("#0b2545", "#13499c", "#3a7ca5", "#5fa8d3", "#9cc9e8", "#6c757d"),
    "IA3": ("#2a7f3f",),
    None: ("#bc5f04", "#f4a259", "#2a7f3f", "#7a7a7a"),
}
MARKERS = "osD^vPX*"


def _with_grid(panels: int, result: dict, title: str):
    figure, axes = new_figure(panels, result, title, width=2.2 + 4.2 * panels)
    for axis in axes:
        axis.grid(color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _style(row: dict, styles: dict[str, tuple]) -> dict:
    """One style per provider, the same in all panels that share ``styles``."""
    kind = "ours" if row["ours"] else row.get("family")
    if row["provider"] not in styles:
        shades, index = SHADES.get(kind, SHADES[None]), sum(k == kind for k, _ in styles.values())
        style = {"color": shades[index % len(shades)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5}
        style |= {"linewidth": 2.2, "zorder": 5} if row["ours"] and not index else {"linewidth": 1.2}
        styles[row["provider"]] = kind, style | ({} if row["ours"] else {"linestyle": "--"})
    return styles[row["provider"]][1]


def _lines(axis, rows: list[dict], x: str, value, styles: dict[str, tuple]) -> tuple[float, float]:
    """Medians as lines, p20 to p80 as bars; ``value`` returns the three of a row. Returns the range of the medians."""
    every = []
    for provider in dict.fromkeys(r["provider"] for r in rows):
        points = sorted((r for r in rows if r["provider"] == provider), key=lambda r: r[x])
        style = _style(points[0], styles)
        found = [(r[x], *value(r)) for r in points if value(r) is not None]
        if not found:
            continue
        xs, middle, low, high = zip(*found, strict=True)
        axis.plot(xs, middle, label=provider, **style)
        axis.vlines(xs, low, high, color=style["color"], linewidth=0.9, alpha=0.45)
        every += middle
    axis.set_xscale("log", base=2)
    values = sorted({r[x] for r in rows})
    axis.set_xticks(values, [str(v) for v in values])
    return min(every, default=1.0), max(every, default=1.0)


def _log_axis(axis, low: float, high: float, ticks: tuple[float, ...], unit: str) -> None:
    axis.set_yscale("log", base=2)
    axis.set_ylim(low, high)
    shown = [t for t in ticks if low <= t <= high]
    axis.set_yticks(shown, [f"{t:g}{unit}" for t in shown])
    axis.minorticks_off()


def overhead(result: dict):
    """Time of the layer with adapters over the layer alone, against the number of requests."""
    keys = ("rank", "mix", "resident", "dim_in", "dim_out", "dtype")
    panels = []
    for phase in ("decode", "prefill"):
        rows = [r for r in result["rows"] if r["phase"] == phase and r["provider"] not in (PLAIN, *CEILINGS)]
        rows = group_with_most(rows, keys, "requests")
        if len({r["requests"] for r in rows}) > 1:
            panels.append((phase, rows))
    if not panels:
        return None
    r = panels[0][1][0]
    title = f"What an adapter per request costs: {r['dim_in']} x {r['dim_out']} {r['dtype']}, LoRA rank {r['rank']}"
    figure, axes = _with_grid(len(panels), result, title)

    def value(r):
        key = "overhead" if r["us"] is not None else "eager_overhead"
        if r.get(key) is None:
            return None
        return tuple(1 + r[key + end] for end in ("", "_p20", "_p80"))

    styles: dict[str, tuple] = {}
    for axis, (phase, rows) in zip(axes, panels, strict=True):
        low, high = _lines(axis, rows, "requests", value, styles)
        axis.axhline(1, color="black", linewidth=1)
        fine = (1.05, 1.1, 1.35) if high < 2.5 else ()
        _log_axis(axis, min(low, 0.97) * 0.98, max(1.2, high * 1.1), (1, *fine, 1.2, 1.5, 2, 3, 5, 10, 20, 50), "x")
        axis.set_title(f"{phase}, {rows[0]['tokens']} token{'s' * (rows[0]['tokens'] > 1)} a request", loc="left")
        axis.set_xlabel("requests, each its own adapter")
    axes[0].set_ylabel("time over the layer without adapters")
    _legend(figure, axes)
    return figure


def bandwidth(result: dict):
    """Share of the clone's bandwidth against rows."""
    panels = []
    for op in ("forward", "forward and backward"):
        rows = [r for r in result["rows"] if r["op"] == op and r["provider"] not in CEILINGS]
        rows = group_with_most(rows, ("dim", "dtype", "variant", "group_size"), "rows")
        if len({r["rows"] for r in rows}) > 1:
            panels.append((op, rows))
    if not panels:
        return None
    r = panels[0][1][0]
    title = f"One adapter, {r['variant']}, D = {r['dim']}, {r['dtype']}: bandwidth as a share of torch.clone's"
    figure, axes = _with_grid(len(panels), result, title)

    def value(r):
        us = r["us"] if r["us"] is not None else r["eager_us"]
        if us is None:
            return None
        key = "us" if r["us"] is not None else "eager_us"
        return tuple(r["percent_of_clone"] * us / r[key + end] for end in ("", "_p80", "_p20"))

    styles: dict[str, tuple] = {}
    for axis, (name, rows) in zip(axes, panels, strict=True):
        low, high = _lines(axis, rows, "rows", value, styles)
        axis.axhline(100, color="black", linewidth=1)
        _log_axis(axis, low * 0.8, max(120, high * 1.25), (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), " %")
        axis.set_title(name, loc="left")
        axis.set_xlabel("rows")
    axes[0].set_ylabel("bandwidth over that of torch.clone")
    _legend(figure, axes)
    return figure


def resident(result: dict):
    """Bytes of the adapters of one layer against their number: exact, from the tensors that were timed."""
    per_adapter: dict[float, dict[str, str]] = {}  # bytes: methods of that size
    rows = [r for r in result["rows"] if r.get("resident_bytes")]
    shape = next(((r["dim_in"], r["dim_out"], r["dtype"]) for r in rows), None)
    for r in rows:
        if (r["dim_in"], r["dim_out"], r["dtype"]) == shape:
            label = {"LoRA": f"LoRA rank {r['rank']}", "RoAd": "RoAd (float32 tables)"}.get(r["family"], r["family"])
            per_adapter.setdefault(r["resident_bytes"] / r["resident"], {})[label] = r["family"]
    if not per_adapter:
        return None
    title = f"Adapters resident for one {shape[0]} x {shape[1]} {shape[2]} layer"
    figure, (axis,) = _with_grid(1, result, title)
    counts = [2**k for k in range(13)]
    for size, methods in per_adapter.items():
        ours = "RoAd" in methods.values()
        color = OURS if ours else LORA if "LoRA" in methods.values() else OTHER
        axis.plot(counts, [n * size for n in counts], color=color, linewidth=2.2 if ours else 1.2)
        axis.annotate(f" {', '.join(methods)}", (counts[-1], counts[-1] * size), color=color, va="center", fontsize=8)
    weight = shape[0] * shape[1] * (4 if shape[2] == "float32" else 2)
    axis.axhline(weight, color="black", linewidth=1)
    axis.annotate("the layer's weight", (1, weight), va="bottom", fontsize=8)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(counts[::2], [str(n) for n in counts[::2]])
    low, high = min(per_adapter), counts[-1] * max(per_adapter)
    ticks = [b for b in (2**k for k in range(8, 42, 4)) if low / 4 <= b <= high * 4]
    axis.set_yticks(ticks, [_bytes(b) for b in ticks])
    axis.minorticks_off()
    axis.set_xlabel("adapters")
    axis.margins(x=0.02)
    return figure


def _bytes(n: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:g} {unit}"
        n //= 1024
    return f"{n} TiB"


def _legend(figure, axes) -> None:
    found = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside right upper", fontsize=7.5, frameon=False)
