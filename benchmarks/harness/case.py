"""What is measured: a case, which is one piece of work that several providers do on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .cold_inputs import Inputs


def _itself(inputs: Inputs) -> Inputs:
    return inputs


def _all_of_it(output: object, inputs: Inputs) -> object:
    return output


@dataclass
class Provider:
    """One way to do the work of a case."""

    name: str
    run: Callable[[object], object]  # takes what prepare returned; only this is timed
    expect: Callable[[Inputs], object] | None  # what it must give, in float64: a tensor or a tuple of them
    tolerance: float | tuple[float, ...] = 0.0  # the largest relative error of a row; of each tensor of a tuple
    prepare: Callable[[Inputs], object] = _itself  # what is in place before the call: stacked weights, coefficients
    view: Callable[[object, Inputs], object] = _all_of_it  # the part of the result that expect gives
    output: str = "fresh"  # "fresh", "in place" (its inputs are not shared with other providers) or "ready"
    bytes: int | None = None  # if not those of the case
    ours: bool = False
    eager_only: str | None = None  # why it cannot be captured in a CUDA graph
    may_fail: bool = False  # somebody else's function that not every machine and shape has: its error becomes a note
    about: dict = field(default_factory=dict)  # further columns


@dataclass
class Case:
    """Providers on the same inputs. ``axes`` are the columns that say which case a row of the results is of."""

    axes: dict
    inputs: Inputs
    providers: list[Provider]
    bytes: int  # what the work must read and write at the least, each byte once
    baseline: str | None = None  # the provider that ``overhead`` is taken over
