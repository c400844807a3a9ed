"""How everything here is measured. A case is one piece of work that several providers do on the same inputs:

1. every provider's result is compared with float64 before anything is timed; the error is recorded beside the time;
2. calls cycle through copies of the inputs, together more than twice the last level of cache, so that each finds its
   data cold. Tiny calls run on cached data: the column ``cold`` says which;
3. providers are interleaved, round by round, after a warm-up: a disturbance of the machine hits all of them;
4. medians come with p20 and p80; an overhead is the median of the ratios within a round;
5. torch.clone of as many bytes as the work must move runs beside them: the ceiling. On a GPU also an elementwise copy,
   which the driver's copy does not always match: the better of the two is 100 % of ``percent_of_copy``.

On a GPU ``us`` is measured in a CUDA graph (``timed`` is "graph") and ``eager_us`` is the wall time of eager calls; a
provider that cannot be captured has only the latter. On a CPU ``us`` is the eager call, at a fixed number of threads.
"""

import contextlib
from dataclasses import dataclass

import torch

from . import timing
from .accuracy import require_close
from .case import Case, Provider
from .cold_inputs import cache_bytes, copied, free_bytes, held_bytes, sets_needed, working_set
from .failures import first_line
from .record import CEILINGS, CLONE, COPY


@dataclass
class Effort:
    """How long a case is timed: see timing.interleave."""

    seconds: float
    rounds: tuple[int, int]
    sample_seconds: float
    eager_rounds: int = 5  # on a GPU, beside the graph
    sets: int = 256  # at most this many copies of the inputs


EFFORTS = {
    "quick": Effort(0.3, (3, 5), 0.0005, sets=4),
    "default": Effort(4.0, (5, 25), 0.002),
    "gpu-check": Effort(0.2, (7, 15), 0.003, eager_rounds=3),
    "full": Effort(2.0, (9, 41), 0.002),
}


def measure(case: Case, device: torch.device | str, effort: Effort, clone: bool = True) -> list[dict]:
    """Checks, then times: one row per provider, the ceilings last. ValueError if a result is wrong."""
    device = torch.device(device)
    with _side_stream(device):
        errors, failed = check(case)
        providers = [p for p in case.providers if p.name not in failed]
        providers += _ceilings(case.bytes, device) if clone else []
        states, sets = _rotated(case, providers, device, effort.sets)
        samples, uncaptured = (_on_gpu if device.type == "cuda" else _on_cpu)(providers, states, effort)
    rows = []
    for p in providers + [p for p in case.providers if p.name in failed]:
        row = {**case.axes, "provider": p.name, **p.about, "ours": p.ours, "output": p.output}
        row |= _timing(samples.get(p.name, {}), samples.get(case.base))
        row |= {"bytes": p.bytes or case.bytes, "error": errors.get(p.name), "sets": sets}
        row |= {"cold": sets * case.bytes > 2 * cache_bytes(device), "note": (failed | uncaptured).get(p.name)}
        rows.append(row)
    add_bandwidth(rows)
    return rows


def check(case: Case) -> tuple[dict[str, float], dict[str, str]]:
    """(error of each provider's result, why those failed that may fail), each on its own copy of the inputs."""
    expected, errors, failed = {}, {}, {}
    for p in case.providers:
        try:
            got = p.view(p.run(p.prepare(copied(case.inputs))), case.inputs)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            if not p.may_fail or isinstance(error, torch.OutOfMemoryError):
                raise
            failed[p.name] = f"failed: {first_line(error)}"
            continue
        if p.expect is not None:
            if p.expect not in expected:  # an expectation that providers share is computed once
                expected[p.expect] = p.expect(case.inputs)
            errors[p.name] = require_close(f"{p.name} in {case.axes}", got, expected[p.expect], p.tolerance)
    return errors, failed


def add_bandwidth(rows: list[dict]) -> None:
    """GB/s of the bytes that the work must move, also as percentages of the clone and of the fastest ceiling."""
    for row in rows:
        us = row["us"] if row["us"] is not None else row["eager_us"]
        row["gbps"] = us and round(row["bytes"] / us / 1e3, 4)
    tops = {row["provider"]: row["gbps"] for row in rows if row["provider"] in CEILINGS}
    for row in rows:
        for column, top in ("percent_of_clone", tops.get(CLONE)), ("percent_of_copy", max(tops.values(), default=None)):
            row[column] = top and row["gbps"] and round(100 * row["gbps"] / top, 2)


def _timing(samples: dict, base: dict | None) -> dict:
    row = {"timed": "graph" if samples.keys() >= {"us", "eager_us"} else "eager"}
    for key, ratio in (("us", "overhead"), ("eager_us", "eager_overhead")):
        empty = {key + end: None for end in ("", "_p20", "_p80")}
        row |= timing.spread(samples[key], key, 1e6) if key in samples else empty
        if base is not None:
            both = key in samples and key in base
            pairs = zip(samples[key], base[key], strict=True) if both else ()
            ratios = [a / b - 1 for a, b in pairs]
            row |= timing.spread(ratios, ratio) if both else {ratio + end: None for end in ("", "_p20", "_p80")}
    return row


def _ceilings(moved: int, device: torch.device) -> list[Provider]:
    """They read half of the bytes and write the other half. Ones: pages of zeros may not be mapped yet."""

    def source(_):
        return torch.ones(max(4, moved // 2) // 4, dtype=torch.int32, device=device)

    def source_and_target(_):
        return source(_), source(_)

    clone = Provider(CLONE, torch.clone, None, prepare=source)
    if device.type != "cuda":
        return [clone]
    copy = Provider(COPY, lambda s: torch.bitwise_not(s[0], out=s[1]), None, prepare=source_and_target, output="ready")
    return [clone, copy]


def _rotated(case: Case, providers: list[Provider], device: torch.device, most: int) -> tuple[dict[str, list], int]:
    """What each provider's calls cycle through. Only providers that write in place need inputs of their own."""
    own = [p for p in providers if p.output == "in place"]
    held = held_bytes(case.inputs) * (2 + len(own))  # 2: what providers prepare may be as large as the inputs
    count = sets_needed(case.bytes, held, working_set(device), free_bytes(device) // 4, most)
    shared = [copied(case.inputs) for _ in range(count)]
    states = {}
    for p in providers:
        inputs = [copied(case.inputs) for _ in range(count)] if p in own else shared
        states[p.name] = [p.prepare(i) for i in inputs]
    return states, count


def _on_cpu(providers: list[Provider], states: dict[str, list], effort: Effort) -> tuple[dict, dict]:
    """(samples by provider and column, why some have no graph)."""
    calls = {p.name: timing.turns(p.run, states[p.name]) for p in providers}
    samples = timing.interleave(
        calls, seconds=effort.seconds, rounds=effort.rounds, sample_seconds=effort.sample_seconds
    )
    return {name: {"us": s} for name, s in samples.items()}, {}


def _on_gpu(providers: list[Provider], states: dict[str, list], effort: Effort) -> tuple[dict, dict]:
    """The same. Eager calls come first: they compile, tune and allocate workspaces, which a capture does not allow."""
    calls = {p.name: timing.turns(p.run, states[p.name]) for p in providers}
    eager = timing.interleave(
        calls,
        seconds=effort.seconds,
        rounds=(effort.eager_rounds, effort.eager_rounds),
        sample_seconds=effort.sample_seconds,
        most_calls=100,
        sample=timing.eager_sample,
    )
    samples = {name: {"eager_us": s} for name, s in eager.items()}
    graphs, uncaptured = {}, {p.name: p.eager_only for p in providers if p.eager_only}
    for p in providers:
        if p.name not in uncaptured:
            n = timing.calls_per_sample(min(eager[p.name]), effort.sample_seconds, most=400)
            try:
                graphs[p.name] = timing.Graph(p.run, states[p.name], max(n, len(states[p.name])))
            except RuntimeError as error:
                if not p.may_fail or isinstance(error, torch.OutOfMemoryError):
                    raise
                uncaptured[p.name] = f"capture failed: {first_line(error)}"
    found = timing.interleave_graphs(graphs, seconds=effort.seconds, rounds=effort.rounds)
    return {name: s | ({"us": found[name]} if name in found else {}) for name, s in samples.items()}, uncaptured


_streams: dict[torch.device, "torch.cuda.Stream"] = {}


@contextlib.contextmanager
def _side_stream(device: torch.device):
    """One side stream for all work on a GPU: capture needs one, and a backward runs on the stream of its forward."""
    if device.type != "cuda":
        yield
        return
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    torch.cuda.synchronize()  # the inputs come from the default stream
    with torch.cuda.stream(_streams[device]):
        yield
    torch.cuda.synchronize()
