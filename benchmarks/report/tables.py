"""Markdown tables from recorded results. README.md and RESULTS.md get every number from here."""

from collections.abc import Callable

from ..harness.record import CEILINGS, PLAIN

AXES = {
    "layer": ("phase", "requests", "rank", "mix", "resident", "dim_in", "dim_out", "dtype"),
    "single_op": ("op", "rows", "dim", "dtype", "variant", "group_size"),
    "fused": ("op", "rows", "dim", "dtype", "adapters"),
}
DISPATCH_MODES = ("no gradients", "records", "forward and backward", "compiled")
# The axis along which a table runs, the most informative first.
ALONG = {
    "layer": ("requests", "rank", "mix", "resident", "dim_out", "dim_in", "dtype"),
    "single_op": ("rows", "dim", "dtype", "variant", "group_size"),
    "fused": ("rows", "dim", "dtype"),
}
NAMES = {"dim_in": "inputs", "dim_out": "outputs", "dim": "D", "group_size": "group", "resident": "resident adapters"}


def machine_line(result: dict) -> str:
    m = result["machine"]
    where = [m["processor"], f"{m['threads']} thread{'s' * (m['threads'] > 1)}", m.get("isa"), f"torch {m['torch']}"]
    if m.get("gpu"):
        where = [m["gpu"], f"driver {m['driver_version']}", f"torch {m['torch']}", f"triton {m['triton']}"]
        where.append(f"SM clock {m['clocks_sm']} of {m['clocks_max_sm']}")
    where += [f"commit {m['commit']}", m.get("date", "")[:10]]
    grid = "" if result.get("grid", "default") != "quick" else " **Quick run: placeholders, not measurements.**"
    return ", ".join(w for w in where if w) + "." + grid


def markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def microseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def point(row: dict, axes: tuple[str, ...]) -> tuple:
    return tuple(row[a] for a in axes)


def describe(fixed: dict) -> str:
    return ", ".join(f"{NAMES.get(k, k)} {v}" for k, v in fixed.items())


# ---- cells


def overhead_cell(row: dict, spread: bool = True) -> str:
    """Over the layer alone; of eager calls, and marked so, for a provider that cannot be captured."""
    key, mark = ("overhead", "") if row["us"] is not None else ("eager_overhead", " (eager)")
    if row["provider"] == PLAIN:
        return f"{microseconds(row['us'])} us"
    if row.get(key) is None:
        return "fails"
    low, high = (f"{100 * row[f'{key}_{p}']:+.0f}" for p in ("p20", "p80"))
    return f"{100 * row[key]:+.0f} %" + (f" ({low} to {high})" if spread else "") + mark


def ceiling_cell(row: dict) -> str:
    us = row["us"] if row["us"] is not None else row["eager_us"]
    return "fails" if us is None else f"{microseconds(us)} us, {row['percent_of_clone']:.0f} %"


def times_cell(row: dict) -> str:
    """And how many times that of the case's base."""
    key, us = ("overhead", row["us"]) if row["us"] is not None else ("eager_overhead", row["eager_us"])
    return (
        "fails"
        if us is None
        else f"{microseconds(us)} us" + (f", {1 + row[key]:.2f} x" if row.get(key) is not None else "")
    )


# ---- tables along one axis


def tables_along(name: str, rows: list[dict], cell: Callable[[dict], str]) -> list[tuple[str, str]]:
    """(what is fixed, table), a column per value of one axis; every measured point is in at least one table."""
    axes, shown, found = AXES[name], set(), []
    for along in ALONG[name]:
        groups: dict[tuple, list[dict]] = {}
        for row in rows:
            groups.setdefault(point(row, tuple(a for a in axes if a != along)), []).append(row)
        for fixed, members in groups.items():
            values = sorted({r[along] for r in members}, key=lambda v: (isinstance(v, str), v))
            if len(values) > 1 and not {point(r, axes) for r in members} <= shown:
                shown |= {point(r, axes) for r in members}
                title = describe(dict(zip((a for a in axes if a != along), fixed, strict=True)))
                found.append((title, table_of(members, along, values, cell)))
    alone = {point(r, axes): None for r in rows if point(r, axes) not in shown}
    for values in alone:
        members = [r for r in rows if point(r, axes) == values]
        found.append((describe(dict(zip(axes, values, strict=True))), table_of(members, axes[0], [values[0]], cell)))
    return found


def table_of(rows: list[dict], along: str, values: list, cell: Callable[[dict], str]) -> str:
    at = {(r["provider"], r[along]): r for r in rows}
    providers = list(dict.fromkeys(r["provider"] for r in rows))
    providers.sort(key=lambda p: (p in CEILINGS, not any(r["ours"] for r in rows if r["provider"] == p) and p != PLAIN))
    lines = []
    for p in providers:
        cells = [cell(at[p, v]) if (p, v) in at else "" for v in values]
        name = f"**{p}**" if any(r["ours"] for r in rows if r["provider"] == p) else p
        lines.append([name, *cells])
    return markdown([NAMES.get(along, along), *(str(v) for v in values)], lines)


def group_with_most(rows: list[dict], keys: tuple[str, ...], along: str) -> list[dict]:
    """The rows of the group with the most values along an axis."""
    groups: dict[tuple, list[dict]] = {}
    for r in rows:
        groups.setdefault(tuple(r[k] for k in keys), []).append(r)
    return max(groups.values(), key=lambda g: len({r[along] for r in g}), default=[])


# ---- dispatch


def dispatch_table(result: dict, spread: bool = False) -> str:
    modes = [m for m in DISPATCH_MODES if any(r["mode"] == m for r in result["rows"])]
    at = {(r["provider"], r["mode"]): r for r in result["rows"]}

    def cell(provider, mode):
        row, base = at.get((provider, mode)), at.get(("x + x", mode))
        if row is None:
            return ""
        text = microseconds(row["us"])
        if spread:
            text += f" ({microseconds(row['us_p20'])} to {microseconds(row['us_p80'])})"
        return text if base in (None, row) else f"{text}, {row['us'] / base['us']:.1f} x"

    lines = []
    for provider in dict.fromkeys(r["provider"] for r in result["rows"]):
        cells = [cell(provider, mode) for mode in modes]
        lines.append([f"**{provider}**" if at[provider, modes[0]]["ours"] else provider, *cells])
    heading = "us a call on 1 x 64, and times x + x"
    return f"{machine_line(result)}\n\n" + markdown([heading, *modes], lines)
