"""The Triton kernels of the fused ops compiled ahead of time, as test_triton_aot.py has the others."""

import re

import pytest
import torch
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("Triton's interpreter takes the compiler's place in this process", allow_module_level=True)

from support.triton_aot import Sass, compile_launch
from support.triton_cases import FusedCase

pytestmark = [pytest.mark.slow, pytest.mark.cpu_only]
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
TARGETS = ("sm_80", "sm_90", "gfx942")


def compiled(case, kernel, target, **known):
    return compile_launch(*case.launches()[kernel], target, **known)


TABLES = [{"own": own, "batched": batched} for own in (False, True) for batched in (False, True)]
ELEMENTWISE = [
    *(FusedCase("silu_mul", dim=22016, **t) for t in TABLES),
    FusedCase("silu_mul", dim=22016, rows=8, batched=True),
    FusedCase("silu_mul", dim=22016, group_size=2, own=True, batched=True),
    FusedCase("silu_mul", dim=22016, dtype=F32, own=True, batched=True),
    FusedCase("silu_mul", dim=22016, dtype=F64),
    *(FusedCase("rope", dim=6144, **t) for t in TABLES),
    FusedCase("rope", dim=6144, own=True, batched=True, cache_dtype=F32),
    FusedCase("rope", dim=6144, rows=8, batched=True, in_place=True),
    FusedCase("rope", dim=6144, group_size=2, batched=True),
    FusedCase("rope", dim=6144, group_size=2, is_neox=False, rotary_dim=64),
    FusedCase("rope", dim=3072, head_dim=64, batched=True),
    FusedCase("rope", dim=6144, dtype=F32, own=True),
    FusedCase("rope", dim=6144, dtype=F64),
]


def of_a_few(case):
    return "64" if case.rows == 8 else "128"


@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_elementwise_kernels_move_16_bytes_at_a_time(on_target, tmp_path, case):
    """8 where there are few rows. Neither registers nor shared memory, through which nothing goes, limit programs."""
    on_target("sm_90")
    for kernel in ("silu_mul", "gradient") if case.op == "silu_mul" else ("rope",):
        sass = Sass(compiled(case, kernel, "sm_90"), tmp_path)
        assert not sass.stack and not sass.local and not sass.shared, (kernel, vars(sass))
        assert sass.registers <= 128, (kernel, vars(sass))  # four programs of 128 lanes
        assert sass.widths("STG") == {of_a_few(case)}, (kernel, vars(sass))
        assert "U16" not in sass.widths("LDG") and of_a_few(case) in sass.widths("LDG"), (kernel, vars(sass))


NORMS = [
    *(FusedCase("add_rms_norm", dim=dim, own=True, batched=True) for dim in (128, 4096, 8192, 16384, 65536)),
    *(FusedCase("add_rms_norm", **t) for t in TABLES[:-1]),
    FusedCase("add_rms_norm", dim=5120, group_size=40, batched=True, in_place=True),
    FusedCase("add_rms_norm", dim=16384, dtype=F32, own=True),
    FusedCase("add_rms_norm", dim=65536, dtype=F32, batched=True),
    FusedCase("add_rms_norm", dim=8192, dtype=F64),
    FusedCase("add_rms_norm", group_size=2, batched=True),
]


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_the_norm_keeps_a_row_in_registers(on_target, tmp_path, case):
    """Shared memory is for the sum of a row only, which Triton 3.6 takes back to the lanes through it as well."""
    on_target("sm_90")
    launch, dtypes = case.launches()["add_rms_norm"]
    sass = Sass(compile_launch(launch, dtypes, "sm_90"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    assert sass.registers * launch.num_warps * 32 <= 65536, vars(sass)
    assert sass.shared <= 8 * (16 if case.dim > 512 else 64), vars(sass)
    wanted = "64" if case.group_size == 40 else "128"  # runs of 20 elements
    assert sass.widths("STG") == {wanted} and wanted in sass.widths("LDG"), vars(sass)
    assert (launch.grid[0] == case.rows) == (case.dim > 512)


@pytest.mark.parametrize(
    "case",
    [
        NORMS[0],
        NORMS[1],
        *(FusedCase("add_rms_norm", dim=dim) for dim in (5120, 8192, 65536)),
        FusedCase("add_rms_norm", dim=8192, dtype=F32),
        FusedCase("add_rms_norm", dtype=F64),
    ],
    ids=str,
)
def test_the_gradient_of_a_norm_keeps_a_row_in_registers(on_target, tmp_path, case):
    on_target("sm_90")
    launch, dtypes = case.launches()["gradient"]
    sass = Sass(compile_launch(launch, dtypes, "sm_90"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    assert sass.registers * launch.num_warps * 32 <= 65536, vars(sass)
    assert sass.shared <= (2 * 8 * 16 if case.dim > 512 else 2048), vars(sass)
    assert sass.widths("STG") == {"128"} and "128" in sass.widths("LDG"), vars(sass)
    assert len(sass.widths("LDG")) == 1 or case.dim <= 512, vars(sass)  # then weight is spread over rows
    assert (launch.grid[0] == case.rows) == (case.dim > 512)


def test_long_rows_only_are_read_twice(on_target):
    on_target("sm_90")
    for kernel, longest in (("add_rms_norm", 16384), ("gradient", 8192)):
        for dim, loops in ((longest, False), (longest + 64, True)):
            ttir = compiled(FusedCase("add_rms_norm", dim=dim), kernel, "sm_90").asm["ttir"]
            assert ("scf.for" in ttir) == loops


@pytest.mark.parametrize("case", ELEMENTWISE[:8], ids=str)
def test_the_backward_of_silu_mul(on_target, tmp_path, case):
    on_target("sm_90")
    sass = Sass(compiled(case, "backward", "sm_90"), tmp_path)
    if case.dtype == F64:
        return
    # Two programs of 256 lanes. Of own tables in a mixed batch ptxas spills four registers rather than lose one.
    assert sass.stack <= (16 if case.own and case.batched else 0) and not sass.local, vars(sass)
    assert sass.registers <= 128, vars(sass)
    assert not sass.row_loop_uses_shared_memory, vars(sass)
    assert "U16" not in sass.widths("LDG") | sass.widths("STG"), vars(sass)


CROSSED = [
    FusedCase("rope", dim=4608, head_dim=96, group_size=32),
    FusedCase("rope", dim=4608, head_dim=96, group_size=32, batched=True, own=True, in_place=True),
    FusedCase("rope", dim=5120, head_dim=80, group_size=16, rotary_dim=32, is_neox=False, in_place=True),
    FusedCase("rope", dim=8192, head_dim=1024, group_size=1024, rotary_dim=64, dtype=F64, in_place=True),
]


@pytest.mark.parametrize("case", CROSSED, ids=str)
def test_crossed_pairs_are_stored_after_all_are_loaded(on_target, tmp_path, case):
    """The barrier between the two survives, where rope is in place, and the compiler moves no load behind it."""
    on_target("sm_90")
    found = compiled(case, "rope", "sm_90")
    sass = Sass(found, tmp_path)
    assert not sass.stack and not sass.local and sass.registers <= 128, vars(sass)
    for text, load, store, barrier in (
        (found.asm["ttgir"], "tt.load", "tt.store", "barrier"),
        (found.asm["ptx"], "ld.global", "st.global", "bar.sync"),
    ):
        at = {name: [m.start() for m in re.finditer(re.escape(name), text)] for name in (load, store, barrier)}
        if case.in_place:
            assert any(max(at[load]) < b < min(at[store]) for b in at[barrier]), text


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize(
    "case",
    [
        FusedCase("silu_mul", batched=True),
        FusedCase("add_rms_norm", batched=True),
        FusedCase("add_rms_norm", dim=65536, batched=True),
        FusedCase("rope", batched=True),
        CROSSED[1],
    ],
    ids=str,
)
def test_other_targets(on_target, tmp_path, case, target):
    on_target(target)
    for kernel in case.launches():
        found = compiled(case, kernel, target)
        if target == "gfx942":
            assert re.search(r"\.vgpr_spill_count:\s+0\n", found.asm["amdgcn"]), kernel
        else:
            sass = Sass(found, tmp_path)
            assert not sass.stack and not sass.local, (kernel, vars(sass))


SMALLEST = [
    *(FusedCase("silu_mul", dim=4, group_size=2, rows=1, dtype=dtype, own=dtype == F32) for dtype in (BF16, F32, F64)),
    FusedCase("silu_mul", dim=4, group_size=2, rows=1, batched=True, adapters=1),
    *(FusedCase("add_rms_norm", dim=2, group_size=2, rows=1, dtype=dtype) for dtype in (BF16, F32, F64)),
    FusedCase("add_rms_norm", dim=2, group_size=2, rows=1, batched=True, own=True, adapters=1, in_place=True),
    *(FusedCase("rope", dim=6, group_size=2, rows=1, head_dim=2, dtype=dtype) for dtype in (BF16, F32, F64)),
    FusedCase("rope", dim=12, group_size=2, rows=1, head_dim=4, batched=True, own=True, adapters=1),
    FusedCase("rope", dim=12, group_size=4, rows=1, head_dim=4, rotary_dim=2, batched=True, adapters=1, in_place=True),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", SMALLEST, ids=str)
def test_the_smallest_shapes_compile(on_target, case, target):
    """compile_launch fails where a kernel has a tile of one element, as does Triton's compiler."""
    on_target(target)
    for kernel in case.launches():
        compiled(case, kernel, target)
        compiled(case, kernel, target, aligned=False)


@pytest.mark.parametrize("op", ["silu_mul", "add_rms_norm", "rope"])
def test_ids_and_positions_are_asserted_on_the_device(on_target, op):
    on_target("sm_90")
    for batched in (False, True):
        ptx = compiled(FusedCase(op, batched=batched), op, "sm_90").asm["ptx"]
        assert len(re.findall(r"call[^;]*__assertfail", ptx)) == batched + (op == "rope")
