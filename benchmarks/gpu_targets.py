"""The speeds that the kernels must reach on a GPU, each measured and set beside its bar.

    python -m benchmarks.gpu_targets [--device cuda] [--quick | --gpu-check | --full] [--seconds S]

bfloat16 activations, float32 parameters; cold data out of a CUDA graph, as method.py says. A missed bar is reported,
not failed. Written for an H200; the bars are ratios, but for decoding.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from .gpu_cases import (
    RANDOM,
    RIVAL,
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

DECODE_ROWS = (1, 16, 64, 256)
CLONE_FORWARD, CLONE_BACKWARD = {"cuda": 97, "triton": 92}, {"cuda": 90, "triton": 80}  # percent of its bandwidth


@dataclass
class Bar:
    """What a row of the results must reach, at least or at most."""

    work: str
    backend: str
    column: str  # percent_of_clone, overhead (over one adapter), us, or speedup (over the rival)
    required: float
    measured: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.measured >= self.required if self.at_least else self.measured <= self.required


def cases(small: bool, device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(kind, what makes the case), the most telling first: the time may not suffice for all."""
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


def bars_of(kind: str, rows: list[dict], best: str) -> list[Bar]:
    """The bars that the rows of a case have to meet."""
    named, work, found = {row["provider"]: row for row in rows}, rows[0]["work"], []
    for name, row in named.items():
        if kind in ("forward", "backward") and name != CLONE:
            required = (CLONE_FORWARD if kind == "forward" else CLONE_BACKWARD).get(name, 0)
            found.append(Bar(work, name, "percent_of_clone", required, row["percent_of_clone"], True))
        elif kind.startswith("batched") and name not in (CLONE, SINGLE):
            required = 0.15 if kind == "batched backward" or name == RANDOM else 0.03
            found.append(Bar(f"{work}, {name}", best, "overhead", required, row["overhead"], False))
        elif kind == "decode" and name != CLONE:
            alone = f", {row['kernel_us']} us of it in the kernel" if row.get("kernel_us") else ""
            found.append(Bar(work + alone, name, "us", 2.0, row["us"], False))
        elif kind == "training" and name not in (CLONE, RIVAL):
            found.append(Bar(work, name, "speedup", 8.0, round(named[RIVAL]["us"] / row["us"], 2), True))
    return found


def add_kernel_times(rows: list[dict], case: Case) -> None:
    """The median of the kernel alone, its data in the cache: what of ``us`` is not the gap between two kernels."""
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
    results, bars, failed = Results("gpu_bars", options), [], []
    path = record.folder(results.machine, options.results) / "gpu_bars_met.json"
    for kind, make in progress(list(cases(options.grid == "quick", device)), f"gpu_bars ({options.device})"):
        name = f"{kind} {make.args[:-1]}"
        if results.out_of_time():
            results.left_out.append(f"{name}: after the limit of {options.seconds:g} s")
            continue
        try:
            case = make()
            rows = measure(case, device, EFFORTS[options.grid])
            if kind == "decode" and device.type == "cuda":
                add_kernel_times(rows, case)
        except Exception as error:  # the other cases are still worth having; the exit status tells
            failed.append(name)
            results.left_out.append(f"{name}: {type(error).__name__}: {first_line(error)}")
        else:
            bars += bars_of(kind, rows, kernel_backends(device)[0])
            results.add(rows)
            found = {"machine": results.machine, "bars": [asdict(b) | {"met": b.met} for b in bars]}
            path.write_text(json.dumps(found, indent=1) + "\n")
        release_memory()
    results.done()
    for b in bars:
        sign = "at least" if b.at_least else "at most"
        print(
            f"{'met   ' if b.met else 'MISSED'} {b.backend:7} {b.work}: {b.column} {b.measured} ({sign} {b.required})"
        )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
