"""Timing two ways of doing a thing against each other."""

import statistics
import time
from collections.abc import Callable


def calls_for(run: Callable[[], object], seconds: float = 0.004) -> int:
    """How many calls make one round long enough for the clock."""
    run()
    start = time.perf_counter()
    run()
    return max(1, min(2000, int(seconds / (time.perf_counter() - start + 1e-9))))


def time_call(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def interleaved(ours: Callable[[], object], rival: Callable[[], object], rounds: int) -> dict:
    """Median seconds a call of both, and the quartiles of their ratio, taken round by round."""
    n, m = calls_for(ours), calls_for(rival)
    pairs = [(time_call(ours, n), time_call(rival, m)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ours_us": statistics.median(a for a, _ in pairs) * 1e6,
        "rival_us": statistics.median(b for _, b in pairs) * 1e6,
        "ratio": statistics.median(ratios),
        "ratio_p20": ratios[len(ratios) // 5],
        "ratio_p80": ratios[-1 - len(ratios) // 5],
    }
