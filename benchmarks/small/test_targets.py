"""Each bar of benchmarks/bars.py as a pytest-benchmark: `make bench`. Correctness first, then time."""

import pytest
import torch

from .. import targets

torch.set_num_threads(2)


@pytest.mark.parametrize("group", targets.GROUPS)
def test_bars(benchmark, record_bar, group):
    """pytest-benchmark times our side of the group as a whole; the ratios that have bars are recorded beside it."""
    ours = []
    for bar in targets.GROUPS[group]():
        ours.append(bar.ours)
        check(bar)
        if benchmark.enabled:
            record_bar(group, bar, targets.time_bar(bar))
    benchmark.pedantic(lambda: [run() for run in ours], rounds=3, warmup_rounds=1)


def check(bar: targets.Bar) -> None:
    """Where the rival computes the same thing, it must agree to the rounding of the narrower of the two."""
    if "PEFT" not in bar.rival_name:
        bar.ours()
        return
    for got, want in zip(as_tuple(bar.ours()), as_tuple(bar.rival()), strict=True):
        scale = want.detach().float().abs().max()
        assert (got.detach().float() - want.detach().float()).abs().max() <= 4 * torch.finfo(got.dtype).eps * scale


def as_tuple(t):
    return t if isinstance(t, tuple) else (t,)
