"""Markdown tables out of recorded results. Every number in README.md and RESULTS.md comes from here."""

from collections.abc import Callable

CLONE, PLAIN = "clone of the same bytes", "no adapter"
AXES = {
    "layer": ("phase", "requests", "rank", "mix", "resident", "dim_in", "dim_out", "dtype"),
    "single_op": ("op", "rows", "dim", "dtype", "variant", "group_size"),
}
# The axis along which a table runs, the most telling first.
ALONG = {
    "layer": ("requests", "rank", "mix", "resident", "dim_out", "dim_in", "dtype"),
    "single_op": ("rows", "dim", "dtype", "variant", "group_size"),
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
    """Over the layer alone; of eager calls, and marked so, where the provider cannot be in a CUDA graph."""
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


# ---- tables along one axis


def tables_along(name: str, rows: list[dict], cell: Callable[[dict], str]) -> list[tuple[str, str]]:
    """(what is fixed, table) with a column for each value of one axis; every measured point is in at least one."""
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
    providers.sort(key=lambda p: (p == CLONE, not any(r["ours"] for r in rows if r["provider"] == p) and p != PLAIN))
    lines = []
    for p in providers:
        cells = [cell(at[p, v]) if (p, v) in at else "" for v in values]
        name = f"**{p}**" if any(r["ours"] for r in rows if r["provider"] == p) else p
        lines.append([name, *cells])
    return markdown([NAMES.get(along, along), *(str(v) for v in values)], lines)


# ---- where a rival wins


def rival_wins(name: str, rows: list[dict]) -> tuple[int, list[str], list[str]]:
    """(number of cases, those in which a rival is faster than our best, those in which it is so by its median only).

    Faster: its p80 is below our p20. Of eager times where that is all the rival has. Our "in place" is left out, which
    does less than a fresh output.
    """
    axes, cases, clear, unclear = AXES[name], {}, [], []
    named = [a for a in axes if len({r[a] for r in rows}) > 1] or list(axes)
    for row in rows:
        cases.setdefault(point(row, axes), []).append(row)
    for members in cases.values():
        found = {True: [], False: []}
        for r in members:
            key = "us" if r["us"] is not None else "eager_us"
            ours = [m for m in members if m["ours"] and m[key] is not None and m["output"] == "fresh"]
            if r["ours"] or r["provider"] in (CLONE, PLAIN) or r[key] is None or not ours:
                continue
            best = min(ours, key=lambda m: m[key])
            if r[key] < best[key]:
                gain = 100 * (1 - r[key] / best[key])
                found[r[f"{key}_p80"] < best[f"{key}_p20"]].append((-gain, f"{r['provider']} ({gain:.1f} % less time)"))
        for is_clear, lines in ((True, clear), (False, unclear)):
            if found[is_clear]:
                what = describe({a: members[0][a] for a in named})
                lines.append(f"{what}: {', '.join(text for _, text in sorted(found[is_clear]))}")
    return len(cases), clear, unclear


def wins_sentence(name: str, rows: list[dict]) -> str:
    """The short form, for README.md."""
    count, clear, unclear = rival_wins(name, rows)
    text = f"Where a rival wins: in {len(clear) or 'none'} of the {count} cases measured"
    text += ": " + "; ".join(f"*{line}*" for line in clear[:3]) if clear else ""
    text += "; the rest in [RESULTS.md](benchmarks/RESULTS.md)" if len(clear) > 3 else ""
    return text + f". In {len(unclear) or 'no'} more its median is lower within the spread."
