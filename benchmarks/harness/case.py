"""What is measured: a case is one piece of work that several providers do on the same inputs."""

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
    expect: Callable[[Inputs], object] | None  # the expected result in float64: a tensor or a tuple of tensors
    tolerance: float | tuple[float, ...] = 0.0  # on the relative error of any row; one, or one per tensor
    prepare: Callable[[Inputs], object] = _itself  # done before the call: stacked weights, coefficients
    view: Callable[[object, Inputs], object] = _all_of_it  # the part of the result that expect returns
    output: str = "fresh"  # "fresh", "in place" (it then gets inputs of its own) or "ready"
    bytes: int | None = None  # None: the bytes of the case
    ours: bool = False
    eager_only: str | None = None  # why it cannot be captured in a CUDA graph
    may_fail: bool = False  # third-party code that some machines or shapes lack: an error becomes a note
    about: dict = field(default_factory=dict)  # further columns


@dataclass
class Case:
    """Providers on the same inputs. ``axes`` are the columns that identify the case in the results."""

    axes: dict
    inputs: Inputs
    providers: list[Provider]
    bytes: int  # the least that the work must read and write, each byte once
    base: str | None = None  # the provider that ``overhead`` is relative to
