"""Results on disk: a JSON and a CSV per benchmark in results/<processor or GPU>/, each naming its machine."""

import csv
import datetime
import functools
import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path

import torch

import road_kernels as rk
from road_kernels.demo import processor

RESULTS = Path(__file__).parents[1] / "results"
# Providers that tables treat differently from the rest.
CLONE, COPY, PLAIN = "clone of the same bytes", "elementwise copy of the same bytes", "no adapter"
PLAIN_SERVED = "no adapter, served"  # what packed projections gain without adapters
CEILINGS = (CLONE, COPY)


def machine(device: torch.device | str = "cpu") -> dict:
    """What it takes to judge a number: hardware, settings, versions, commit, date."""
    device = torch.device(device)
    found = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "isa": (rk.backend_info()["build"] or {}).get("cpu_isa"),
        # Whether torch asks for huge pages, which decides what a large fresh output costs on a CPU.
        "thp": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return found | (_gpu(device) if device.type == "cuda" else {})


def _gpu(device: torch.device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    found = {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }
    keys = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    index = torch.cuda.current_device() if device.index is None else device.index
    said = _output("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader", f"--id={index}")
    values = [v.strip() for v in said.split(",")] if said else [None] * len(keys)
    return found | {key.replace(".", "_"): value for key, value in zip(keys, values, strict=True)}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str:
    """ROAD_KERNELS_COMMIT, for a copy of the sources without git; else what git reports."""
    if given := os.environ.get("ROAD_KERNELS_COMMIT"):
        return given
    commit = _output("git", "rev-parse", "--short", "HEAD")
    generated = [
        f":(top,exclude){path}" for path in ("benchmarks/results", "benchmarks/RESULTS.md", "README.md", "docs")
    ]
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", *generated)
    return (commit or "unknown") + ("-dirty" if changed else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def folder(found: dict, root: Path | None = None) -> Path:
    name = found.get("gpu") or found["processor"]
    return (root or RESULTS) / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(
    name: str,
    rows: list[dict],
    device: torch.device | str = "cpu",
    root: Path | None = None,
    found: dict | None = None,
    **about,
) -> Path:
    """Writes <name>.json and <name>.csv into the machine's folder; ``about`` (grid, left_out) goes beside the rows.

    ``found``: the result of machine(), called here if None.
    """
    found = found or machine(device)
    path = folder(found, root) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"benchmark": name, **about, "machine": found}, indent=1)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)  # one row per line, for readable diffs
    path.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.with_suffix(".csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(path: Path | str) -> dict:
    return json.loads(Path(path).read_text())
