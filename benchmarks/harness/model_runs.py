"""What generation.py and training.py share: options, rounds of long samples, and the loop over cases."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

from . import sweep, timing


def arguments(
    description: str, add: Callable[[argparse.ArgumentParser], None], argv: list[str] | None, prog: str
) -> argparse.Namespace:
    """sweep.arguments, and those that ``add`` adds."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add(own)
    mine, rest = own.parse_known_args(argv)
    shape = " ".join(own.format_usage().split()[2:])
    options = sweep.arguments(f"{description} Also takes: {shape}", rest, prog)
    return argparse.Namespace(**vars(options), **vars(mine))


def rounds(
    samples: dict[str, Callable[[], dict]], seconds: float, bounds: tuple[int, int], longest: float = math.inf
) -> dict[str, list[dict[str, float]]]:
    """One sample of each provider per round, each round starting with the next provider. Unlike timing.interleave for
    samples that are seconds long: none is spent on sizing, and the caller has warmed up by checking the results. A
    provider whose sample takes more than ``longest`` seconds is sampled once."""
    taken = {name: [] for name in samples}
    names, stop = list(samples), time.perf_counter() + seconds
    for k in range(bounds[1]):
        if k >= bounds[0] and time.perf_counter() > stop:
            break
        first = k % max(1, len(names))
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            taken[name].append(samples[name]())
            if time.perf_counter() - start > longest:
                names.remove(name)
    return taken


def spreads(taken: list[dict], base: list[dict] | None, ratios: dict[str, str], keys: tuple[str, ...]) -> dict:
    """Median, p20 and p80 of each key, and of the ratios to the base: ``ratios`` is {column: key}, each ratio taken
    within a round, for the rounds that both have. None where there are no samples."""
    row = {}
    for key in keys:
        row |= timing.spread([t[key] for t in taken], key) if taken else _nothing(key)
    for column, key in ratios.items():
        pairs = zip(taken, base or (), strict=False)
        found = [t[key] / b[key] for t, b in pairs]
        row |= timing.spread(found, column) if found else _nothing(column)
    return row


def _nothing(name: str) -> dict:
    return {name + end: None for end in ("", "_p20", "_p80")}


def run_cases(name: str, grid: list[dict], rows_of: Callable[[dict], list[dict]], options: argparse.Namespace) -> Path:
    """Measures and saves every case of the grid; the results name those that the time limit leaves out."""
    results = sweep.Results(name, options)
    for axes in sweep.progress(grid, f"{name} ({options.grid}, {options.shape}, {options.device})"):
        if results.out_of_time():
            results.left_out.append(f"{sweep.label(axes)}: after the limit of {options.seconds:g} s")
        else:
            results.add(rows_of(axes))
    results.done()
    return results.add([])
