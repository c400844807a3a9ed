"""Where a baseline is faster than the kernels."""

from ..harness.record import CEILINGS, PLAIN
from .tables import AXES, describe, point


def baseline_wins(name: str, rows: list[dict]) -> tuple[int, list[str], list[str]]:
    """(number of cases, those in which a baseline is faster than our best, those in which only its median is lower).

    Faster: its p80 is below our p20. A baseline with eager times only is compared with our eager time. Our "in place"
    does not count: it does less work than a fresh output.
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
            if r["ours"] or r["provider"] in (*CEILINGS, PLAIN) or r[key] is None or not ours:
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
    count, clear, unclear = baseline_wins(name, rows)
    text = f"Where a baseline wins: in {len(clear) or 'none'} of the {count} cases measured"
    text += ": " + "; ".join(f"*{line}*" for line in clear[:3]) if clear else ""
    text += "; the rest in [RESULTS.md](benchmarks/RESULTS.md)" if len(clear) > 3 else ""
    return text + f". In {len(unclear) or 'no'} more its median is lower within the spread."
