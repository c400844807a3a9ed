"""The Triton kernels compiled ahead of time, without a GPU: registers, spills and access widths from their SASS."""

import re
from dataclasses import dataclass

import pytest
import torch
from support.problems import op_form, param_width
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("Triton's interpreter takes the compiler's place in this process", allow_module_level=True)

from support.triton_aot import TARGETS, Sass, compile_launch

from road_kernels.triton import prepare
from road_kernels.triton.plan import FORWARD_WARPS, forward_warps

pytestmark = [pytest.mark.slow, pytest.mark.cpu_only]
F16, BF16, F32, F64, I64 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64


@dataclass(frozen=True)
class Case:
    """A call on x [rows, dim] with float32 parameters; `gap` elements between rows."""

    form: str = "road_1"
    dtype: torch.dtype = BF16
    dim: int = 4096
    group_size: int = 64
    batched: bool = False
    rows: int = 4096
    gap: int = 0
    transposed: bool = False
    from_output: bool = False
    split: bool = False

    def __str__(self):
        changed = {name: value for name, value in vars(self).items() if value != getattr(Case, name)}
        return " ".join(f"{name}={value}".removeprefix("dtype=torch.") for name, value in changed.items()) or "plain"

    def arguments(self):
        width = param_width(self.form, self.dim)
        strides = (width, width) if self.batched else (0, 0)
        adapters = 100 if self.batched else 1
        return adapters, width, *strides, self.rows if self.batched else None, op_form(self.form), self.group_size

    def strides(self):
        row = self.dim + self.gap
        return (self.rows * row + 64, row, 1) if self.split else (row, 1)

    def shape(self):
        return (2, self.rows // 2, self.dim) if self.split else (self.rows, self.dim)


@pytest.fixture
def prepared(monkeypatch):
    """What prepare.py prepares for a case on a large GPU: {kernel: (launch, dtypes of its tensors)}."""

    def make_ready(case: Case, target: str):
        lanes = TARGETS[target][2]
        monkeypatch.setattr(prepare, "_device", lambda index, warps: (warps, 132, lanes))
        for cache in (prepare.rotate, prepare.backward):
            cache.cache_clear()
        x, shape, strides = case.dtype, case.shape(), case.strides()
        rotate = prepare.rotate(
            0, shape, strides, strides, x, True, *case.arguments(), case.transposed, case.transposed
        )
        backward, reduce, _ = prepare.backward(
            0, shape, strides, strides, x, True, *case.arguments(), case.from_output, (True, True, True)
        )
        scratch = F64 if x == F64 else F32
        ids = I64 if case.batched else F32
        return {
            "rotate": (rotate, [x, x, F32, F32, ids]),
            "backward": (backward, [x, x, x, F32, F32, ids, ids, scratch]),
            "reduce": (reduce, [scratch, ids, F32, F32, F32, F32]),
        }

    yield make_ready
    for cache in (prepare.rotate, prepare.backward):
        cache.cache_clear()


FORMS = ("road_1", "road_2", "road_4", "table", "table_half")
EVERY_FORM = [Case(form=form, batched=batched) for form in FORMS for batched in (False, True)]
WORDS = [
    Case(group_size=2),
    Case(group_size=2, form="road_4", batched=True),
    Case(group_size=2, form="table", batched=True),
    Case(group_size=2, dtype=F16, form="road_2"),
    Case(group_size=2, dtype=F32),
    Case(group_size=2, dtype=F32, form="table", batched=True),
]
OTHERS = [
    Case(dtype=F32),
    Case(dtype=F32, form="road_2", batched=True),
    Case(rows=8),
    Case(rows=8, batched=True, form="table_half"),
    Case(dim=11008, group_size=11008, batched=True),
    Case(dim=5120, group_size=40, from_output=True),
    Case(transposed=True, form="road_2"),
    Case(from_output=True, form="road_4", batched=True),
    Case(split=True, gap=64),
]
NARROW = [Case(dim=70, group_size=2, form="road_2"), Case(gap=1, batched=True), Case(dim=64), Case(dtype=F64)]


def compile_case(prepared, case, target, kernel, **known):
    launch, dtypes = prepared(case, target)[kernel]
    return compile_launch(launch, dtypes, target, **known)


@pytest.mark.parametrize("kernel", ["rotate", "backward"])
@pytest.mark.parametrize("case", EVERY_FORM + WORDS + OTHERS, ids=str)
def test_rows_move_16_bytes_at_a_time_and_nothing_spills(prepared, tmp_path, case, kernel):
    sass = Sass(compile_case(prepared, case, "sm_90", kernel), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    # 3 programs of 128 threads fit a multiprocessor at 168 registers a thread; 5 at 96, as serving from tables needs.
    serving = kernel == "rotate" and case.form.startswith("table")
    assert sass.registers <= (96 if serving else 168), vars(sass)
    warps, _ = forward_warps(op_form(case.form), case.batched)
    if kernel == "rotate" and warps != FORWARD_WARPS:  # so many must fit the 65536 registers of a multiprocessor
        assert sass.registers * 32 * warps <= 65536, vars(sass)
    vector = 4 if case.group_size == 40 else 8  # half a group is 20 elements, no multiple of 8
    wanted = "64" if vector == 4 else "128"
    assert wanted in sass.widths("LDG"), vars(sass)
    if kernel == "rotate":  # which stores nothing but rows
        assert sass.widths("STG") == {wanted}, vars(sass)
    # No scalar loads, except for the parameters of adjacent pairs with own coefficients, which are interleaved.
    interleaved = case.group_size == 2 and case.form in ("road_2", "road_4", "table")
    assert sass.widths("LDG") <= {"128", "64", *(["32"] if interleaved else [])}, vars(sass)
    assert not sass.row_loop_uses_shared_memory, vars(sass)


@pytest.mark.parametrize("kernel", ["rotate", "backward"])
@pytest.mark.parametrize("case", NARROW, ids=str)
def test_odd_rows_and_float64_do_not_spill(prepared, tmp_path, case, kernel):
    sass = Sass(compile_case(prepared, case, "sm_90", kernel), tmp_path)
    assert sass.registers <= 168
    if case.dtype != F64:  # CUDA's sine of a double keeps an array on the stack
        assert not sass.stack and not sass.local, vars(sass)


@pytest.mark.parametrize("case", [*EVERY_FORM[::2], *OTHERS[-4:-1]], ids=str)
def test_the_reduction_does_not_spill(prepared, tmp_path, case):
    sass = Sass(compile_case(prepared, case, "sm_90", "reduce"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    assert sass.registers <= 255


@pytest.mark.parametrize("case", [Case(), WORDS[1], Case(form="table_half", batched=True)], ids=str)
def test_nothing_spills_on_ampere(prepared, tmp_path, case):
    for kernel in ("rotate", "backward", "reduce"):
        sass = Sass(compile_case(prepared, case, "sm_80", kernel), tmp_path)
        assert not sass.stack and not sass.local, vars(sass)
        if kernel == "rotate":
            assert sass.widths("STG") == {"128"}, vars(sass)


@pytest.mark.parametrize("case", [Case(), WORDS[1], Case(form="table_half", batched=True)], ids=str)
def test_nothing_spills_on_amd(prepared, case):
    for kernel in ("rotate", "backward", "reduce"):
        assembly = compile_case(prepared, case, "gfx942", kernel).asm["amdgcn"]
        usage = dict(re.findall(r"\.(vgpr_spill_count|sgpr_spill_count|vgpr_count):\s+(\d+)", assembly))
        assert int(usage["vgpr_spill_count"]) == 0, usage
        if kernel == "rotate" and not case.batched:
            assert "global_load_dwordx4" in assembly and "global_load_ushort" not in assembly
        assembly = compile_case(prepared, case, "gfx942", kernel, small=True).asm["amdgcn"]
        assert "buffer_load_dword" in assembly and re.search(r"\.vgpr_spill_count:\s+0\n", assembly)


@pytest.mark.parametrize("dtype", [torch.int32, I64], ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_sort_rows_keeps_its_counts_in_registers(tmp_path, dtype, target):
    for aligned in (True, False):  # ids may start at any address
        compiled = compile_launch(prepare.sort_rows(0, 4096, 100), [dtype, I64, I64, I64], target, aligned)
        if target == "gfx942":
            assert int(re.search(r"\.vgpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"]).group(1)) == 0
            continue
        sass = Sass(compiled, tmp_path)
        assert not sass.stack and not sass.local and sass.registers <= 80, vars(sass)
        assert not sass.row_loop_uses_shared_memory, vars(sass)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_merge_moves_16_bytes_at_a_time(monkeypatch, tmp_path, dtype, target):
    monkeypatch.setattr(prepare, "_device", lambda index, warps: (warps, 132, TARGETS[target][2]))
    prepare.merge.cache_clear()
    launch = prepare.merge(0, (4096, 11008), 11008, 11008, dtype, True, 2048, 64)
    prepare.merge.cache_clear()
    compiled = compile_launch(launch, [dtype, dtype, F64, F64], target)
    if target == "gfx942":
        assert "global_store_dwordx4" in compiled.asm["amdgcn"]
        return
    sass = Sass(compiled, tmp_path)
    assert not sass.stack and not sass.local and not sass.shared, vars(sass)
    assert sass.widths("STG") == {"128"} and "U16" not in sass.widths("LDG"), vars(sass)


def test_ids_outside_the_bank_are_asserted_on_the_device(prepared, tmp_path):
    """The assertion survives compilation where there are ids, and only there."""
    for kernel in ("rotate", "backward"):
        for batched in (False, True):
            ptx = compile_case(prepared, Case(batched=batched), "sm_90", kernel).asm["ptx"]
            assert ("__assertfail" in ptx) == batched
