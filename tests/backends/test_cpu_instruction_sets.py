"""The CPU kernels of every instruction set against the oracle, each in its own process, where it is chosen once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only
ISAS = ("default", "avx2", "avx512", "avx512_bf16")

# One process imports torch, which takes longer than the checks, and forks before the instruction set is chosen.
SCRIPT = """
import json, os, sys, torch
sys.path.insert(0, sys.argv[1])

def check():
    import road_kernels as rk
    from support.expected import arithmetic_of, assert_close, expect_backward, expect_forward
    from support.problems import DTYPES, FORMS, apply, make_params, make_x
    for dtype in DTYPES:
        for form in FORMS:
            for dim, g in ((192, 64), (70, 2), (18, 6)):
                x, gz = make_x(5, dim, dtype=dtype).requires_grad_(), make_x(5, dim, dtype=dtype, seed=2)
                p, q = (t.requires_grad_() for t in make_params(form, None, dim))
                z = apply(x, p, q, form, group_size=g, backend="cpu")
                z.backward(gz)
                assert_close(z, expect_forward(x, p, q, form, g), arithmetic_of(dtype))
                for got, want in zip((x.grad, p.grad, q.grad), expect_backward(gz, x, p, q, form, g)):
                    assert_close(got, want, arithmetic_of(dtype), units=7)
    for g in (2, 64):  # every finite bfloat16, scaled and rounded: instructions differ on subnormal ones
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(-1, 128)
        every = torch.where(every.isfinite(), every, 0)
        for scale in (1.0, 0.7, 3e-39):
            z = rk.rotate(every, torch.full((64,), scale), torch.zeros(64), group_size=g, backend="cpu")
            assert torch.equal(z.view(torch.int16), (every.float() * scale).bfloat16().view(torch.int16))
    return rk.backend_info()["build"]["cpu_isa"]

for isa in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        os.environ["ROAD_KERNELS_ISA"] = isa
        try:
            print(json.dumps([isa, check()]), flush=True)
        except BaseException:
            print(isa, file=sys.stderr)
            sys.excepthook(*sys.exc_info())
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(isa, "ended with wait status", status, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def ran():
    """{instruction set that passed: the one that was used}, and what was written to stderr."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), *ISAS]
    run = subprocess.run(command, capture_output=True, text=True)
    return dict(map(json.loads, run.stdout.splitlines())), run.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_same_numbers_up_to_rounding(ran, isa):
    used, said = ran
    assert isa in used, said
    if used[isa] != isa:
        pytest.skip(f"this processor has no {isa}; {used[isa]} ran and is right")
