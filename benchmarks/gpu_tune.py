"""Compares the choices of csrc/cuda/tuning.h on the GPU of this machine: builds and measures a variant for each.

    python3 -m benchmarks.gpu_tune [--only WORD ...] [--seconds S] [--results FOLDER]

Runs in the repository, with what make gpu-check needs; builds go to build/gpu-tune. Each variant is measured in a
process of its own, the current choices first and last: a difference smaller than between those two is noise.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from .gpu_batched_cases import SPREAD, batched_backward_case, batched_case
from .gpu_cases import ANGLES, TABLES, backward_case, forward_case
from .gpu_fused_cases import fused_case
from .harness import record
from .harness.failures import release_memory
from .harness.measure import EFFORTS, measure
from .harness.record import CEILINGS

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu-tune"
SOURCES = ("csrc", "road_kernels", "python_fallback", "setup.py", "pyproject.toml", "README.md", "LICENSE")
STANDING = "as it stands"
# Macros that override the defaults of tuning.h, without their common prefix ROAD_.
VARIANTS = {
    STANDING: {},
    "256 threads": {"THREADS": 256},
    "64 threads": {"THREADS": 64},
    "forward: 2 rows a thread from shared tables": {"ROWS_TABLES_SHARED": 2},
    "forward: 1 row a thread from shared tables of adjacent features": {"ROWS_TABLES_ADJACENT": 1},
    "forward: 2 rows a thread from own tables": {"ROWS_TABLES_OWN": 2},
    "forward: 2 rows a thread from shared angles": {"ROWS_ANGLES_SHARED": 2},
    "forward: 2 rows a thread from own angles": {"ROWS_ANGLES_OWN": 2},
    "forward: 8 bytes a thread at 1024 rows": {"FEW_BYTES": 8 << 20},
    "forward: prefetches at 1024 rows": {"PREFETCH_BYTES": 8 << 20},
    "forward: own angles in every block": {"TABLE_BYTES": 1 << 40},
    "forward: 96 registers from shared tables": {"RESIDENT_TABLES": 640},
    "forward: rows stay in the cache": {"STREAM_BYTES": 1 << 40},
    "rotate_silu_mul: 72 registers": {"RESIDENT_SILU": 896},
    "rotate_rope: 80 registers": {"RESIDENT_ROPE": 768},
    "rotate_add_rms_norm: 64 registers": {"NORM_REGISTERS": 64},
    "backward: 128 columns": {"COLUMNS": 128},
    "backward: 32 rows a block": {"BLOCK_ROWS": 32},
    "backward: 128 rows a block": {"BLOCK_ROWS": 128},
    "backward: 1 row at once": {"ROWS_AT_ONCE": 1},
    "backward: 2 rows at once of own coefficients": {"ROWS_AT_ONCE_OWN": 2},
    "backward: 64 rows a block of own coefficients": {"BLOCK_ROWS_OWN": 64},
}


def folder_of(name: str) -> Path:
    return WORK / name.replace(":", "").replace(" ", "-")


def build(name: str) -> str | None:
    """Builds a variant for this GPU only, in a copy of the sources. Returns what went wrong, or None."""
    folder = folder_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    for part in SOURCES:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, folder / part)
    flags = " ".join(f"-DROAD_{macro}={value}" for macro, value in VARIANTS[name].items())
    environment = {"ROAD_KERNELS_BUILD": "1", "ROAD_KERNELS_CUDA": "1", "NVCC_APPEND_FLAGS": flags, "MAX_JOBS": "4"}
    environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "site"]
    run = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    return None if run.returncode == 0 else (run.stdout + run.stderr)[-2000:]


def cases(device: torch.device, small: bool):
    rows, dim = (64, 256) if small else (16384, 4096)
    for variant in ("road_1", "road_4"):
        for source in (TABLES, ANGLES):
            yield partial(forward_case, rows, dim, 64, variant, source, device)
        yield partial(backward_case, rows, dim, 64, variant, False, device)
    yield partial(forward_case, rows if small else 1024, dim, 64, "road_1", TABLES, device)
    yield partial(forward_case, rows, dim, 2, "road_1", TABLES, device)
    backend = "cpu" if device.type == "cpu" else "cuda"
    yield partial(batched_case, rows, dim, backend, torch.float32, device)
    yield partial(batched_backward_case, rows, dim, backend, SPREAD, device)
    yield partial(fused_case, "silu_mul", 64 if small else 8192, backend, device, small)


def times(device: torch.device, small: bool = False) -> dict[str, dict[str, float]]:
    """Percent of the bandwidth of the fastest copy, by work and provider."""
    found = {}
    for make in cases(device, small):
        case = make()
        case.providers = [p for p in case.providers if p.ours and p.name not in ("triton", "python")]
        for row in measure(case, device, EFFORTS["quick" if small else "gpu-check"]):
            if row["provider"] not in CEILINGS:
                found[f"{row['work']}: {row['provider']}"] = row["percent_of_copy"]
        del case
        release_memory()
    return found


def measured(name: str) -> dict | None:
    environment = {"PYTHONPATH": f"{folder_of(name) / 'site'}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_tune", "--measure"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if run.returncode:
        print(f"{name}: {run.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(run.stdout.splitlines()[-1])


def table(results: dict[str, dict]) -> str:
    """Percent of the bandwidth of the fastest copy: a line per work, a column per variant."""
    works = list(next(iter(results.values())))
    width = max(map(len, works))
    keys = [f"[{k}]" for k in range(len(results))]
    lines = [f"{key} {name}" for key, name in zip(keys, results, strict=True)]
    lines.append(" " * width + "".join(f"{key:>8}" for key in keys))
    for work in works:
        lines.append(f"{work:{width}}" + "".join(f"{found.get(work, float('nan')):8.1f}" for found in results.values()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="variants whose name has one of these words")
    parser.add_argument("--seconds", type=float, default=420, help="no variant is measured after that")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT", WORK)))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(times(torch.device("cuda"))))
        return 0
    start = time.monotonic()
    names = [n for n in VARIANTS if n == STANDING or not options.only or any(w in n for w in options.only)]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
        failures = dict(zip(names, pool.map(build, names), strict=True))
    for name in [n for n in names if failures[n]]:
        print(f"{name} was not built: {failures[name]}", file=sys.stderr)
    results = {}
    for name in [n for n in names if not failures[n]] + [STANDING]:
        if name != STANDING and time.monotonic() - start > options.seconds:
            print(f"left out, after {options.seconds:g} s: {name}", file=sys.stderr)
        elif found := measured(name):
            results[f"{name}, again" if name in results else name] = found
    options.results.mkdir(parents=True, exist_ok=True)
    about = {"machine": record.machine("cuda"), "variants": VARIANTS, "percent_of_copy": results}
    (options.results / "gpu_tune.json").write_text(json.dumps(about, indent=1) + "\n")
    print(table(results) if results else "nothing was measured")
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
