"""A benchmark as a program: its grid case by case, with a progress bar, a time limit and results on disk.

python -m benchmarks.<name> [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from . import record
from .method import EFFORTS, Case, measure

GRIDS = tuple(EFFORTS)  # "quick", "default", "gpu-check", "full"


def arguments(description: str, argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """device, grid, threads, seconds and results, the same for every benchmark; threads are set at once."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU, fixed and recorded")
    parser.add_argument("--seconds", type=float, help="start no case later than this; the rest is named in the results")
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    grid = parser.add_mutually_exclusive_group()
    for name, what in (
        ("quick", "seconds, to see that it works"),
        ("gpu-check", "the main points of a GPU in about two minutes"),
        ("full", "every point, for a GPU"),
    ):
        grid.add_argument(f"--{name}", dest="grid", action="store_const", const=name, default="default", help=what)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def star(base: dict, **axes) -> list[dict]:
    """The base point, and each axis varied alone from there."""
    points = [base] + [base | {name: value} for name, values in axes.items() for value in values]
    return list({tuple(p.items()): p for p in points}.values())


def progress(items: Iterable, what: str) -> Iterable:
    """A bar on stderr; in a log, or without tqdm, one line."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
        return items
    return tqdm(items, desc=what, mininterval=1.0, dynamic_ncols=True)


def label(axes: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in axes.items())


def sweep(
    name: str, grid: list[dict], build: Callable[..., Case], options: argparse.Namespace, clone: bool = True
) -> list[dict]:
    """Measures build(device=..., **axes) for the axes of each point of the grid, and saves after every case.

    A case that does not fit into memory, or comes after the time limit, is named in the results: none is dropped in
    silence.
    """
    rows, left_out, start = [], [], time.perf_counter()

    def save() -> Path:
        seconds = round(time.perf_counter() - start)
        about = {"grid": options.grid, "seconds": seconds, "left_out": left_out}
        return record.save(name, rows, options.device, options.results, **about)

    for axes in progress(grid, f"{name} ({options.grid}, {options.device})"):
        if options.seconds is not None and time.perf_counter() - start > options.seconds:
            left_out.append(f"{label(axes)}: after the limit of {options.seconds:g} s")
            continue
        try:
            rows += measure(build(device=options.device, **axes), options.device, EFFORTS[options.grid], clone)
        except torch.OutOfMemoryError as error:
            left_out.append(f"{label(axes)}: {str(error).splitlines()[0]}")
        save()
    path = save()
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{name}: {len(rows)} rows in {time.perf_counter() - start:.0f} s -> {path}")
    return rows
