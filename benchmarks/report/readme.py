"""The parts of README.md and docs/ that are generated: a table and a plot for README.md, more of both for
docs/performance.md, and what the demonstration prints. RESULTS.md (page.py) has everything."""

from pathlib import Path

from ..harness.record import CEILINGS, PLAIN
from . import model_tables, tables
from .targets_table import table_of_fused_ops, table_of_gpu_targets, table_of_targets
from .wins import wins_sentence

# What README.md compares: our kernels, the formula without them, and each other method in its best and its usual way.
README_PROVIDERS = (
    PLAIN,
    "RoAd, road_kernels cuda",
    "RoAd, road_kernels triton",
    "RoAd, eager formula, coefficients in place",
    "LoRA, bmm, weights in place",
    "LoRA, bmm, weights gathered in the call",
    "LoRA, sorted, torch's grouped_mm",
    "IA3, vectors gathered in the call",
)
# A layer cannot take less time with an adapter than without: a column with such a time says how large its noise is.
NOISE = -0.05


def short_layer(result: dict, providers: tuple[str, ...] | None = None) -> str:
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
    noisy = [h for h in head if any((cells[h]["overhead"] or 0) < NOISE for cells in chosen.values() if h in cells)]
    head = [h for h in head if h not in noisy]
    lines = []
    for provider, cells in chosen.items():
        if providers is None or provider in providers:
            name = f"**{provider}**" if any(r["ours"] for r in cells.values()) else provider
            lines.append([name, *(tables.overhead_cell(cells[h], spread=False) if h in cells else "" for h in head)])
    r = next(iter(next(iter(chosen.values())).values()))
    what = f"{r['dim_in']} x {r['dim_out']} {r['dtype']}, LoRA rank {r['rank']}, prefill of 512 tokens a request"
    parts = [f"{tables.machine_line(result)} {what}."]
    parts.append(tables.markdown(["requests, each its own adapter", *head], lines))
    if noisy:
        parts.append(f"Left out, because the layer was slower without an adapter: {'; '.join(noisy)}.")
    return "\n\n".join(parts if providers else [*parts, wins_sentence("layer", result["rows"])])


def headline(result: dict) -> str:
    """One line of a GPU's targets: bandwidth of the forward and the backward, and training against PEFT."""
    at = {(r["work"], r["backend"], r["column"]): r["measured"] for r in result["bars"]}
    op = "16384 x 4096, group_size 64, road_1"
    forward = at[f"forward, {op}, tables", "cuda", "percent_of_copy"]
    backward = at[f"backward, {op}", "cuda", "percent_of_copy"]
    both = at["forward and backward, 16384 x 4096", "cuda", "speedup"]
    m = result["machine"]
    return (
        f"On an {m['gpu'].split()[1]} at commit {m['commit']}, 16384 x 4096 in bfloat16: the forward moves its bytes "
        f"at {forward:.0f} % of the speed of the fastest copy, the backward at {backward:.0f} %; both together are "
        f"{both:.0f} x as fast as PEFT's formula."
    )


def into(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between <!-- name --> and <!-- /name -->; unchanged, with a message, without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        print(f"no {begin} ... {end} here: that part is left out")
        return text
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def parts_of(found: dict[Path, dict[str, dict]]) -> dict[str, str]:
    """Content by marker. ``found``: GPUs first, then the newest."""
    parts = {}
    gpus = {
        folder: results for folder, results in found.items() if any("gpu" in r["machine"] for r in results.values())
    }
    for folder, results in gpus.items():
        if "layer" in results and "figure" not in parts:
            parts["table"] = short_layer(results["layer"], README_PROVIDERS)
            image = f"benchmarks/results/{folder.name}/cost.png"
            parts["figure"] = f'<img src="{image}" width="520" alt="{FIGURE}">'
        if "gpu_bars_met" in results and "headline" not in parts:
            parts["headline"] = headline(results["gpu_bars_met"])
            machine = tables.machine_line(results["gpu_bars_met"])
            parts["gpu_targets"] = f"{machine}\n\n{table_of_gpu_targets(results['gpu_bars_met'])}"
        if "fused" not in parts and (table := table_of_fused_ops(results.get("gpu_bars", {"rows": []}))):
            parts["fused"] = f"{tables.machine_line(results['gpu_bars'])}\n\n{table}"
    targets = [(f, r["cpu"]) for f, r in found.items() if "cpu" in r]
    if targets:
        folder, result = max(targets, key=lambda item: item[1]["machine"].get("date", ""))
        parts["benchmarks"] = table_of_targets(result)
        if (demo := folder / "demo.txt").exists():
            parts["demo"] = f"```text\n{demo.read_text()}```"
        else:
            print(f"no {demo} (python -m road_kernels > demo.txt): docs/install.md keeps its demonstration")
    short = {"elementwise": ("layer", short_layer), "dispatch": ("dispatch", tables.dispatch_table)}
    for marker, (name, table) in (short | {n: (n, t) for n, t in model_tables.TABLES.items()}).items():
        if made := [table(r[name]) for r in found.values() if name in r]:
            parts[marker] = "\n\n".join(made)
    return parts


FIGURE = "Time that an adapter per request adds to a linear layer, RoAd, IA3 and LoRA, against requests in the batch"


def fill(page: str, parts: dict[str, str]) -> str:
    """``page`` with the newest content between those markers that it has."""
    for name, content in parts.items():
        page = into(page, name, content) if f"<!-- {name} -->" in page else page
    return page
