"""Each target of benchmarks/targets.py as a pytest-benchmark (`make bench`): correctness first, then time."""

import pytest
import torch

from .. import targets

torch.set_num_threads(2)


@pytest.mark.parametrize("group", targets.GROUPS)
def test_targets(benchmark, record_target, group):
    """pytest-benchmark times our side of the group as a whole; the ratios that have targets are recorded beside it."""
    ours = []
    for target in targets.GROUPS[group]():
        ours.append(target.ours)
        check(target)
        if benchmark.enabled:
            record_target(group, target, targets.time_target(target))
    benchmark.pedantic(lambda: [run() for run in ours], rounds=3, warmup_rounds=1)


def check(target: targets.Target) -> None:
    """A baseline that computes the same thing must agree to within the rounding of the narrower dtype."""
    if "PEFT" not in target.baseline_name:
        target.ours()
        return
    for got, want in zip(as_tuple(target.ours()), as_tuple(target.baseline()), strict=True):
        scale = want.detach().float().abs().max()
        assert (got.detach().float() - want.detach().float()).abs().max() <= 4 * torch.finfo(got.dtype).eps * scale


def as_tuple(t):
    return t if isinstance(t, tuple) else (t,)
