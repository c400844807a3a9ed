"""The generated parts of README.md: short tables, and the demonstration."""

from pathlib import Path

from ..harness.record import CEILINGS
from . import model_tables, tables
from .targets_table import table_of_targets
from .wins import wins_sentence


def short_layer(result: dict) -> str:
    """Overhead over the layer alone against requests, decode and prefill side by side."""
    chosen, head = {}, []
    for phase in ("decode", "prefill"):
        rows = [r for r in result["rows"] if r["phase"] == phase]
        rows = tables.group_with_most(rows, ("rank", "mix", "resident", "dim_in", "dim_out", "dtype"), "requests")
        counts = sorted({r["requests"] for r in rows})
        for requests in counts if len(counts) <= 4 else [counts[0], counts[len(counts) // 2], counts[-1]]:
            head.append(f"{phase}, {requests}")
            for r in rows:
                if r["requests"] == requests and r["provider"] not in CEILINGS:
                    chosen.setdefault(r["provider"], {})[head[-1]] = r
    lines = []
    for provider, cells in chosen.items():
        name = f"**{provider}**" if any(r["ours"] for r in cells.values()) else provider
        lines.append([name, *(tables.overhead_cell(cells[h], spread=False) if h in cells else "" for h in head)])
    r = next(iter(next(iter(chosen.values())).values()))
    what = f"{r['dim_in']} x {r['dim_out']} {r['dtype']}, LoRA rank {r['rank']}, prefill of 512 tokens a request"
    return "\n\n".join(
        (
            f"{tables.machine_line(result)} {what}.",
            tables.markdown(["requests, each its own adapter", *head], lines),
            wins_sentence("layer", result["rows"]),
        )
    )


def into(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between <!-- name --> and <!-- /name -->; unchanged, with a message, without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        print(f"README.md has no {begin} ... {end}: that part is left out")
        return text
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def readme_parts(found: dict[Path, dict[str, dict]]) -> dict[str, str]:
    """Content by marker: targets and demo of the newest CPU, the other tables of every machine that has them."""
    parts = {}
    targets = [(f, r["cpu"]) for f, r in found.items() if "cpu" in r]
    if targets:
        folder, result = max(targets, key=lambda item: item[1]["machine"].get("date", ""))
        parts["benchmarks"] = table_of_targets(result)
        if (demo := folder / "demo.txt").exists():
            parts["demo"] = f"```text\n{demo.read_text()}```"
        else:
            print(f"no {demo} (python -m road_kernels > demo.txt): README.md keeps its demonstration")
    short = {"elementwise": ("layer", short_layer), "dispatch": ("dispatch", tables.dispatch_table)}
    for marker, (name, table) in (short | {n: (n, t) for n, t in model_tables.TABLES.items()}).items():
        if made := [table(r[name]) for r in found.values() if name in r]:
            parts[marker] = "\n\n".join(made)
    return parts
