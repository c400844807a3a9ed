"""The tables of generation.py, training.py and vllm.py."""

from ..harness.record import PLAIN
from . import tables

MIB = 1 << 20
CLOCKS = {"wall": "", "processor": " Time is that of the processor, which had other work too."}
TITLES = {"vllm": "Serving in vLLM"}  # of a benchmark whose name is no title


def generation_table(result: dict) -> str:
    """Tokens per second against requests, also as a share of the base model's; a table per dtype and mode."""
    parts = [tables.machine_line(result)]
    for title, rows in grouped(result["rows"], ("shape", "dtype", "mode", "prompt", "new_tokens")):
        shape, dtype, mode, prompt, new = title
        parts.append(
            f"Llama {shape}, {dtype}, {mode}, prompts of {prompt} tokens, {new} new ones; tokens/s of the batch, in "
            "brackets of what the model without adapters reaches:"
        )
        counts = sorted({r["requests"] for r in rows})
        lines = []
        for _, members in grouped(rows, ("provider",)):
            at = {r["requests"]: r for r in members}
            cells = [_tokens_cell(at[n]) if n in at else "" for n in counts]
            lines.append([_name(members[0]), *cells, _mib(members[0]["adapter_bytes"])])
        parts.append(tables.markdown(["requests, each its own adapter", *map(str, counts), "MiB an adapter"], lines))
        parts += _beside_served(rows)
        parts += _notes(rows)
    return "\n\n".join(parts)


def training_table(result: dict) -> str:
    """Time and memory of one step; a table per shape and dtype."""
    parts = [tables.machine_line(result)]
    for (shape, dtype, tokens), rows in grouped(result["rows"], ("shape", "dtype", "tokens")):
        peak, how = peak_of(rows)
        parts.append(f"Llama {shape}, {dtype}, one sequence of {tokens} tokens, AdamW. {how}")
        head = ["adapters", "parameters, k", "ms a step", "over no adapter", "MiB kept for backward", f"MiB {peak}"]
        lines = []
        for r in rows:
            ms = "fails" if r["step_ms"] is None else f"{r['step_ms']:.{0 if r['step_ms'] >= 100 else 1}f}"
            ms += " (once)" if r["samples"] == 1 else ""
            over = "" if r["over_base"] is None else f"{r['over_base']:.2f} x ({_range(r, 'over_base', '.2f')})"
            parameters = f"{r['trainable'] / 1e3:.0f}" if r["trainable"] else ""
            lines.append([_name(r), parameters, ms, over, _mib(r["saved_bytes"]), _mib(r[PEAKS[peak]])])
        parts += [tables.markdown(head, lines), *_notes(rows)]
    return "\n\n".join(parts)


def vllm_table(result: dict) -> str:
    """Throughput and time per output token, against the number of different adapters; a table per dtype."""
    parts = [tables.machine_line(result)]
    for title, rows in grouped(result["rows"], ("vllm", "shape", "dtype", "requests", "prompt", "new_tokens", "clock")):
        version, shape, dtype, requests, prompt, new, clock = title
        parts.append(
            f"vLLM {version}, Llama {shape}, {dtype}, {requests} requests at once, prompts of {prompt} tokens, {new} "
            "new ones. Time per output token of the batch; over: against requests without adapters in the same server, "
            "median of the rounds (p20 to p80)." + CLOCKS[clock]
        )
        head = ["server", "requests with", "different adapters", "tokens/s", "ms per token", "over", "prefill, ms"]
        lines = []
        for r in rows:
            base = r["provider"] == PLAIN
            over = "" if base else f"{r['over_base']:.3f} x ({_range(r, 'over_base', '.3f')})"
            cells = [f"{r['tokens_per_s']:.0f}", f"{r['decode_ms']:.2f}", over, f"{r['prefill_ms']:.0f}"]
            lines.append([r["server"], _name(r), "" if base else str(r["adapters"]), *cells])
        parts.append(tables.markdown(head, lines))
    return "\n\n".join(parts)


def _beside_served(rows: list[dict]) -> list[str]:
    """What RoAd costs in a served model, whose packed projections are faster without adapters too."""
    served = [r for r in rows if r["provider"] == "RoAd, served" and r.get("of_base_served") is not None]
    if not served:
        return []
    shares = (
        f"{100 * r['of_base_served']:.1f} % ({_range(r, 'of_base_served', '.3f')}) with {r['requests']}" for r in served
    )
    return [f"RoAd, served, of what the same model reaches without adapters: {', '.join(shares)}."]


PEAKS = {"at the peak": "peak_cuda_bytes", "at the peak of a step": "peak_rss_bytes"}


def peak_of(rows: list[dict]) -> tuple[str, str]:
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


def grouped(rows: list[dict], keys: tuple[str, ...]) -> list[tuple[tuple, list[dict]]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return list(groups.items())


def _notes(rows: list[dict]) -> list[str]:
    """Why a provider was not run, once per reason."""
    notes = dict.fromkeys(f"Not run: {r['provider']}: {r['note'].rstrip('.')}." for r in rows if r["note"])
    return ["\n".join(f"- {line}" for line in notes)] if notes else []


TABLES = {"generation": generation_table, "training": training_table, "vllm": vllm_table}
