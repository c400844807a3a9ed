"""A benchmark as a program: it measures its grid case by case, with a progress bar, a time limit, results on disk.

python -m benchmarks.<name> [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from . import record
from .case import Case
from .failures import first_line, release_memory
from .measure import EFFORTS, measure

GRIDS = tuple(EFFORTS)  # "quick", "default", "gpu-check", "full"


def arguments(
    description: str, argv: list[str] | None = None, prog: str | None = None, gpu_check_seconds: float | None = None
) -> argparse.Namespace:
    """The options of every benchmark: device, grid, threads, seconds, results. Sets the number of threads."""
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
    if options.grid == "gpu-check" and options.seconds is None:
        options.seconds = gpu_check_seconds
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def star(base: dict, **axes) -> list[dict]:
    """The base point, and each axis varied alone."""
    points = [base] + [base | {name: value} for name, values in axes.items() for value in values]
    return list({tuple(p.items()): p for p in points}.values())


def progress(items: Iterable, what: str) -> Iterable:
    """A progress bar on stderr; one line in a log, or without tqdm."""
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


class Results:
    """The rows of one benchmark, saved as they come: an interrupted run keeps what it has measured."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options, self.start = name, options, time.perf_counter()
        self.rows, self.left_out = [], []
        self.machine = record.machine(options.device)

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def out_of_time(self) -> bool:
        return self.options.seconds is not None and self.seconds() > self.options.seconds

    def add(self, rows: list[dict]) -> Path:
        self.rows += rows
        about = {"grid": self.options.grid, "seconds": round(self.seconds()), "left_out": self.left_out}
        return record.save(self.name, self.rows, self.options.device, self.options.results, self.machine, **about)

    def done(self) -> list[dict]:
        self.machine |= {k: v for k, v in record.machine(self.options.device).items() if k.startswith("clocks")}
        path = self.add([])  # with the clocks of the warm GPU
        for line in self.left_out:
            print(f"left out: {line}", file=sys.stderr)
        print(f"{self.name}: {len(self.rows)} rows in {self.seconds():.0f} s -> {path}")
        return self.rows


def sweep(name: str, grid: list[dict], build: Callable[..., Case], options: argparse.Namespace) -> list[dict]:
    """Measures build(device=..., **axes) for the axes of each point of the grid.

    The results name every case that is left out: those that do not fit in memory, that come after the time limit, or
    that fail. After a failure the others are still measured; RuntimeError is raised at the end.
    """
    results, failed = Results(name, options), []
    for axes in progress(grid, f"{name} ({options.grid}, {options.device})"):
        if results.out_of_time():
            results.left_out.append(f"{label(axes)}: after the limit of {options.seconds:g} s")
            continue
        try:
            results.add(
                measure(build(device=torch.device(options.device), **axes), options.device, EFFORTS[options.grid])
            )
        except torch.OutOfMemoryError as error:
            results.left_out.append(f"{label(axes)}: {first_line(error)}")
        except Exception as error:
            failed.append(f"{label(axes)}: {type(error).__name__}: {first_line(error)}")
            results.left_out.append(failed[-1])
        release_memory()
    rows = results.done()
    if failed:
        raise RuntimeError(f"{name}: {len(failed)} cases failed, first {failed[0]}")
    return rows
