"""The plot of README.md: what an adapter per request costs a layer. Little enough on it for a phone, and for grey."""

from .figure import LORA, OURS, machine_note, plain_figure
from .tables import group_with_most

# Provider: label, colour, line, marker. Told apart without colour by line and marker, and by labels at the lines.
SHOWN = {
    "LoRA, bmm, weights in place": ("LoRA rank {rank}, bmm", LORA, "--", "s"),
    "IA3, vectors gathered in the call": ("IA3", "#505050", ":", "^"),
    "RoAd, road_kernels cuda": ("RoAd, road_kernels", OURS, "-", "o"),
}


def cost(result: dict):
    """Percent over the layer alone against requests, decode above prefill; None without a GPU or one of the methods."""
    panels = []
    for phase in ("decode", "prefill"):
        rows = [r for r in result["rows"] if r["phase"] == phase and r["provider"] in SHOWN]
        rows = group_with_most(rows, ("rank", "mix", "resident", "dim_in", "dim_out", "dtype"), "requests")
        if {r["provider"] for r in rows} == SHOWN.keys() and len({r["requests"] for r in rows}) > 1:
            panels.append((phase, rows))
    if len(panels) < 2:
        return None
    r = panels[0][1][0]
    figure, axes = plain_figure(
        len(panels), f"An adapter per request on a {r['dim_in']} x {r['dim_out']} {r['dtype']} layer"
    )
    for axis, (phase, rows) in zip(axes, panels, strict=True):
        _panel(axis, rows)
        tokens = f"{rows[0]['tokens']} token{'s' * (rows[0]['tokens'] > 1)} a request"
        axis.set_title(f"{phase}, {tokens}: time added to the layer", loc="left", fontsize=12)
    axes[-1].set_xlabel("requests in the batch, each its own adapter", fontsize=12)
    machine_note(figure, result)
    return figure


def _panel(axis, rows: list[dict]) -> None:
    counts = sorted({r["requests"] for r in rows})
    top = 100 * max(r["overhead"] for r in rows)
    ends = []
    for provider, (label, color, line, marker) in SHOWN.items():
        points = sorted((r for r in rows if r["provider"] == provider), key=lambda r: r["requests"])
        xs, ys = [r["requests"] for r in points], [100 * r["overhead"] for r in points]
        axis.plot(xs, ys, color=color, linestyle=line, marker=marker, linewidth=2.6, markersize=8)
        ends.append((ys[-1], f"{label.format(rank=points[0]['rank'])}: {ys[-1]:.0f} %", xs[-1], color))
    below = -1.0
    for y, text, x, color in sorted(ends):  # apart from each other, where the lines are not
        below = max(y, below + 0.11 * top)
        axis.annotate(
            f" {text}", (x, y), xytext=(x * 1.15, below), color=color, va="center", fontsize=12, fontweight="bold"
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.set_ylim(0, 1.12 * top)
    axis.yaxis.set_major_formatter(lambda y, _: f"+{y:.0f} %")
    axis.tick_params(labelsize=12)
    axis.grid(axis="y", color="#e0e0e0", linewidth=0.8)
