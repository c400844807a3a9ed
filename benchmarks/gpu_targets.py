"""The speeds that the kernels must reach on a GPU, each measured and compared with its target.

    python -m benchmarks.gpu_targets [--device cuda] [--quick | --gpu-check | --full] [--seconds S]

bfloat16 activations, float32 parameters; cold data, in a CUDA graph (see harness/measure.py). A missed target is
reported, not failed. All targets are ratios: to the fastest copy of the same bytes, to one adapter, to a memcpy, to
PEFT's formula.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from .gpu_batched_cases import RANDOM, SINGLE, SPREAD, batched_backward_case, batched_case, decode_case
from .gpu_cases import ANGLES, COMPILED, DTYPE, PEFT, TABLES, backward_case, forward_case, merge_case, training_case
from .gpu_fused_cases import OPS as FUSED
from .gpu_fused_cases import fused_case
from .harness import record
from .harness.backends import kernel_backends
from .harness.case import Case
from .harness.failures import first_line, release_memory
from .harness.measure import EFFORTS, measure
from .harness.record import CEILINGS
from .harness.sweep import Results, arguments, progress

RESULTS = "gpu_bars"  # the name of the files; tests/gpu/summary.py reads them
DECODE_ROWS = (1, 16, 64, 256)
ROWS, DIM = 16384, 4096
FUSED_ROWS, FUSED_DECODE_ROWS = 8192, 64

# Percent of the fastest copy, for CUDA; Triton's are some percent lower.
FORWARD = {(TABLES, True): 98, (ANGLES, True): 97, (TABLES, False): 96, (ANGLES, False): 93}  # by source, road_1
FEW_ROWS = 90
BACKWARD = {True: 93, False: 90}  # road_1, or each row of a pair with coefficients of its own
TRITON_LESS = 5
# Over one adapter.
BATCHED = {"float32": 0.25, "bfloat16": 0.12}  # 1000 adapters at random, by the dtype of the tables
FEW_ADAPTERS, BACKWARD_SPREAD, BACKWARD_RANDOM = 0.01, 0.05, 0.25
DECODE, DECODE_OVERLAP = 0.3, -0.1  # over a memcpy of as many bytes
FUSED_OVER_NEIGHBOUR = 0.03  # over the same op without an adapter


@dataclass
class Target:
    """A bound on a column of a row of the results, from below or from above."""

    work: str
    backend: str
    column: str  # percent_of_copy, overhead (over the base of the case), or speedup (over another provider)
    required: float
    measured: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.measured >= self.required if self.at_least else self.measured <= self.required


def cases(small: bool, device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(kind, function that makes the case), the most informative first: time may not suffice for all."""
    best = kernel_backends(device)[0]
    rows, dim = (64, 256) if small else (ROWS, DIM)
    forward = partial(forward_case, device=device)
    backward = partial(backward_case, device=device)
    yield "forward", partial(forward, rows, dim, 64, "road_1", TABLES)
    yield "backward", partial(backward, rows, dim, 64, "road_1", False)
    yield "batched forward", partial(batched_case, rows, dim, best, torch.float32, device)
    yield "batched backward", partial(batched_backward_case, rows, dim, best, SPREAD, device)
    yield "batched backward", partial(batched_backward_case, rows, dim, best, RANDOM, device)
    for n in DECODE_ROWS[:1] if small else DECODE_ROWS:
        yield "decode", partial(decode_case, n, dim, device)
    if small:
        yield "training", partial(training_case, rows, dim, device)
        yield "merge", partial(merge_case, dim, device)
        yield "forward", partial(forward, rows, dim, 2, "road_4", ANGLES)
        for op in FUSED:
            yield "fused", partial(fused_case, op, rows, best, device, small=True)
        return
    for op in FUSED:
        for n in (FUSED_ROWS, FUSED_DECODE_ROWS):
            for name in kernel_backends(device):
                yield "fused", partial(fused_case, op, n, name, device)
    yield "forward", partial(forward, 4096, dim, 64, "road_1", TABLES)
    yield "forward", partial(forward, 1024, dim, 64, "road_1", TABLES)
    yield "forward", partial(forward, rows, dim, 64, "road_1", ANGLES)
    yield "backward", partial(backward, rows, dim, 64, "road_1", True)
    for variant in ("road_2", "road_4"):
        for source in (TABLES, ANGLES):
            yield "forward", partial(forward, rows, dim, 64, variant, source)
        yield "backward", partial(backward, rows, dim, 64, variant, False)
    yield "batched forward", partial(batched_case, rows, dim, best, DTYPE, device)
    for shape in ((rows, 2048), (8192, 14336)):
        yield "forward", partial(forward, *shape, 64, "road_1", TABLES)
        yield "backward", partial(backward, *shape, 64, "road_1", False)
    for group_size in (2, dim):
        yield "forward", partial(forward, rows, dim, group_size, "road_1", TABLES)
        yield "backward", partial(backward, rows, dim, group_size, "road_1", False)
    yield "training", partial(training_case, rows, dim, device)
    yield "merge", partial(merge_case, dim, device)
    yield "batched forward", partial(batched_case, rows, dim, best, None, device)


def required_percent(work: str, backend: str) -> float:
    """Of the fastest copy, from the name of the work."""
    shared = "road_1" in work
    if work.startswith("backward"):
        found = BACKWARD[shared]
    elif " 1024 x" in work:
        found = FEW_ROWS
    else:
        found = FORWARD[TABLES if work.endswith(TABLES) else ANGLES, shared]
    return found - (TRITON_LESS if backend == "triton" else 0)


def targets_of(kind: str, rows: list[dict], best: str) -> list[Target]:
    """The targets that the rows of a case have to meet. best: the backend of mixed batches."""
    named = {row["provider"]: row for row in rows if row["provider"] not in CEILINGS}
    work, found = rows[0]["work"], []
    for name, row in named.items():
        if not row["ours"]:
            continue
        if kind in ("forward", "backward"):
            required = required_percent(work, name)
            found.append(Target(work, name, "percent_of_copy", required, row["percent_of_copy"], True))
        elif kind == "batched forward" and name != SINGLE:
            dtype = next((d for d in BATCHED if f"{d} tables" in work), None)
            if dtype is None:  # from angles: measured, without a target
                continue
            required = BATCHED[dtype] if name == RANDOM else FEW_ADAPTERS
            found.append(Target(f"{work}, {name}", best, "overhead", required, row["overhead"], False))
        elif kind == "batched backward" and name != SINGLE:
            required = BACKWARD_RANDOM if name == RANDOM else BACKWARD_SPREAD
            found.append(Target(f"{work}, {name}", best, "overhead", required, row["overhead"], False))
        elif kind == "fused" and name == SPREAD:
            backend = work.rpartition(", ")[2]
            found.append(Target(work, backend, "overhead", FUSED_OVER_NEIGHBOUR, row["overhead"], False))
        elif kind == "decode" and name != "triton":
            required = DECODE_OVERLAP if name.endswith("overlap") else DECODE
            found.append(Target(work, name, "overhead", required, row["overhead"], False))
        elif kind == "training":
            found.append(Target(work, name, "speedup", 8.0, round(named[PEFT]["us"] / row["us"], 2), True))
    for other, required in (COMPILED, 1.0), ("triton", 0.98):  # never behind the one, nor by more than 2 % the other
        if kind == "forward" and "cuda" in named and named.get(other, {}).get("us"):
            ratio = round(named[other]["us"] / named["cuda"]["us"], 3)
            found.append(Target(f"{work}, against {other}", "cuda", "speedup", required, ratio, True))
    return found


def main(argv: list[str] | None = None) -> int:
    options = arguments(__doc__, argv, "python -m benchmarks.gpu_targets", gpu_check_seconds=90)
    device = torch.device(options.device)
    results, targets, failed = Results(RESULTS, options), [], []
    path = record.folder(results.machine, options.results) / f"{RESULTS}_met.json"
    for kind, make in progress(list(cases(options.grid == "quick", device)), f"{RESULTS} ({options.device})"):
        name = f"{kind} {make.args}"
        if results.out_of_time():
            results.left_out.append(f"{name}: after the limit of {options.seconds:g} s")
            continue
        try:
            rows = measure(make(), device, EFFORTS[options.grid])
        except Exception as error:  # the other cases are still measured; the exit status reports it
            failed.append(name)
            results.left_out.append(f"{name}: {type(error).__name__}: {first_line(error)}")
        else:
            targets += targets_of(kind, rows, kernel_backends(device)[0])
            results.add(rows)
            found = {"machine": results.machine, "bars": [asdict(b) | {"met": b.met} for b in targets]}
            path.write_text(json.dumps(found, indent=1) + "\n")
        release_memory()
    results.done()
    for b in targets:
        sign = "at least" if b.at_least else "at most"
        print(
            f"{'met   ' if b.met else 'MISSED'} {b.backend:7} {b.work}: {b.column} {b.measured} ({sign} {b.required})"
        )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
