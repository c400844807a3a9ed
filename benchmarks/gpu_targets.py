"""The speeds that the kernels must reach on a GPU, each measured and compared with its target.

    python -m benchmarks.gpu_targets [--device cuda] [--quick | --gpu-check | --full] [--seconds S]

bfloat16 activations, float32 parameters; cold data, in a CUDA graph (see harness/measure.py). A missed target is
reported, not failed. Written for an H200; all targets but that of decoding are ratios.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from .gpu_cases import (
    PEFT,
    RANDOM,
    SHAPES,
    SINGLE,
    SMALL_SHAPES,
    backward_case,
    batched_backward_case,
    batched_case,
    decode_case,
    forward_case,
    training_case,
)
from .harness import record, timing
from .harness.backends import kernel_backends
from .harness.case import Case
from .harness.cold_inputs import copied
from .harness.failures import first_line, release_memory
from .harness.measure import EFFORTS, measure
from .harness.record import CLONE
from .harness.sweep import Results, arguments, progress

RESULTS = "gpu_bars"  # the name of the files; tests/gpu/summary.py reads them
DECODE_ROWS = (1, 16, 64, 256)
CLONE_FORWARD, CLONE_BACKWARD = {"cuda": 97, "triton": 92}, {"cuda": 90, "triton": 80}  # percent of its bandwidth


@dataclass
class Target:
    """A bound on a column of a row of the results, from below or from above."""

    work: str
    backend: str
    column: str  # percent_of_clone, overhead (over one adapter), us, or speedup (over PEFT's formula)
    required: float
    measured: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.measured >= self.required if self.at_least else self.measured <= self.required


def cases(small: bool, device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(kind, function that makes the case), the most informative first: time may not suffice for all."""
    shapes, best = (SMALL_SHAPES if small else SHAPES), kernel_backends(device)[0]
    rows, dim = shapes[0]  # of a mixed batch: 64 requests of 256 tokens
    for shape in shapes:
        yield "forward", partial(forward_case, *shape, 64, device)
        yield "backward", partial(backward_case, *shape, 64, device)
    yield "batched forward", partial(batched_case, rows, dim, best, True, device)
    yield "batched backward", partial(batched_backward_case, rows, dim, best, device)
    for n in DECODE_ROWS[:1] if small else DECODE_ROWS:
        yield "decode", partial(decode_case, n, dim, device)
    yield "training", partial(training_case, rows, dim, device)
    for shape in shapes:
        yield "forward", partial(forward_case, *shape, 2, device)
        yield "backward", partial(backward_case, *shape, 2, device)
    yield "batched forward", partial(batched_case, rows, dim, best, False, device)


def targets_of(kind: str, rows: list[dict], best: str) -> list[Target]:
    """The targets that the rows of a case have to meet."""
    named, work, found = {row["provider"]: row for row in rows}, rows[0]["work"], []
    for name, row in named.items():
        if kind in ("forward", "backward") and name != CLONE:
            required = (CLONE_FORWARD if kind == "forward" else CLONE_BACKWARD).get(name, 0)
            found.append(Target(work, name, "percent_of_clone", required, row["percent_of_clone"], True))
        elif kind.startswith("batched") and name not in (CLONE, SINGLE):
            required = 0.15 if kind == "batched backward" or name == RANDOM else 0.03
            found.append(Target(f"{work}, {name}", best, "overhead", required, row["overhead"], False))
        elif kind == "decode" and name != CLONE:
            alone = f", {row['kernel_us']} us of it in the kernel" if row.get("kernel_us") else ""
            found.append(Target(work + alone, name, "us", 2.0, row["us"], False))
        elif kind == "training" and name not in (CLONE, PEFT):
            found.append(Target(work, name, "speedup", 8.0, round(named[PEFT]["us"] / row["us"], 2), True))
    return found


def add_kernel_times(rows: list[dict], case: Case) -> None:
    """The median time of the kernel alone, on cached data: the part of ``us`` that is not the gap between kernels."""
    for row in rows:
        for p in case.providers:
            if p.name == row["provider"]:
                state = p.prepare(copied(case.inputs))
                p.run(state)
                found = timing.kernel_samples(timing.repeats(partial(p.run, state)), 30)
                row["kernel_us"] = round(1e6 * statistics.median(found), 2) if found else None


def main(argv: list[str] | None = None) -> int:
    options = arguments(__doc__, argv, "python -m benchmarks.gpu_targets", gpu_check_seconds=75)
    device = torch.device(options.device)
    results, targets, failed = Results(RESULTS, options), [], []
    path = record.folder(results.machine, options.results) / f"{RESULTS}_met.json"
    for kind, make in progress(list(cases(options.grid == "quick", device)), f"{RESULTS} ({options.device})"):
        name = f"{kind} {make.args[:-1]}"
        if results.out_of_time():
            results.left_out.append(f"{name}: after the limit of {options.seconds:g} s")
            continue
        try:
            case = make()
            rows = measure(case, device, EFFORTS[options.grid])
            if kind == "decode" and device.type == "cuda":
                add_kernel_times(rows, case)
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
