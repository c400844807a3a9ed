"""The Triton kernels compiled ahead of time, without a GPU: registers, spills and access widths from their SASS."""

import re
from dataclasses import replace

import pytest
import torch
from support.problems import param_width
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("Triton's interpreter takes the compiler's place in this process", allow_module_level=True)

from support.triton_aot import Sass, compile_launch
from support.triton_cases import Case

from road_kernels.triton import prepare

pytestmark = [pytest.mark.slow, pytest.mark.cpu_only]
F16, BF16, F32, F64, I32, I64 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64


@pytest.fixture
def compile_case(on_target):
    def compile_one(case: Case, target: str, kernel: str, **known):
        on_target(target)
        x, shape, strides = case.dtype, case.shape(), case.strides()
        ids = I64 if case.batched else F32
        if kernel == "rotate":
            launch = prepare.rotate(
                0, shape, strides, strides, x, True, *case.arguments(), case.transposed, case.transposed
            )
            return compile_launch(launch, [x, x, F32, F32, ids], target, **known)
        backward, reduce, _ = prepare.backward(
            0, shape, strides, strides, x, True, *case.arguments(), case.from_output, (True, True, True)
        )
        scratch = F64 if x == F64 else F32
        if kernel == "backward":
            return compile_launch(backward, [x, x, x, F32, F32, ids, ids, scratch], target, **known)
        return compile_launch(reduce, [scratch, ids, F32, F32, F32, F32], target, **known)

    return compile_one


def sorting_launches(ids: int, adapters: int, dtype):
    """{kernel: (launch, dtypes of its tensors)} of both ways to sort."""
    count, add, place, _ = prepare.sort_many(ids, adapters)
    return {
        "few": (prepare.sort_few(min(ids, 4096), adapters), [dtype, I64, I64]),
        "count": (count, [dtype, I64]),
        "add": (add, [I64, I64]),
        "place": (place, [dtype, I64, I64, I64]),
    }


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
    Case(dim=11008, group_size=11008, batched=True),
    Case(dim=5120, group_size=40, from_output=True),
    Case(transposed=True, form="road_2"),
    Case(from_output=True, form="road_4", batched=True),
    Case(split=True, gap=64, batched=True),
    Case(gap=4, form="table_half"),
]
FEW = [
    Case(rows=8),
    Case(rows=8, batched=True, form="table_half"),
    Case(rows=8, batched=True, form="table"),
    Case(rows=256, batched=True, form="road_4"),
    Case(rows=64, group_size=2, form="table_half", batched=True),
]
NARROW = [Case(dim=70, group_size=2, form="road_2"), Case(gap=1, batched=True), Case(dim=64), Case(dtype=F64)]


def moved_at_once(case: Case, most: int = 16) -> str:
    """Bits of an access to a row, as SASS says it."""
    bytes_of_half = case.group_size // 2 * case.dtype.itemsize if not case.words else 16
    while bytes_of_half % most or (case.gap * case.dtype.itemsize) % most:
        most //= 2
    return {16: "128", 8: "64"}[most]


@pytest.mark.parametrize("case", EVERY_FORM + WORDS + OTHERS + FEW, ids=str)
def test_forward(compile_case, tmp_path, case):
    sass = Sass(compile_case(case, "sm_90", "rotate"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    # Programs of 128 lanes that fit on a multiprocessor with its 65536 registers: 7, 5 and 3.
    registers = 73 if case.form.startswith("table") else 102 if case.form == "road_1" else 168
    assert sass.registers <= registers, vars(sass)
    wanted = moved_at_once(case, 8 if case in FEW else 16)
    assert sass.widths("STG") == {wanted}, vars(sass)
    # Nothing goes element by element, but for parameters of adjacent pairs that share none: those are interleaved.
    interleaved = case.words and not case.shared
    assert sass.widths("LDG") <= {"128", "64", *(["32"] if interleaved else [])}, vars(sass)
    assert wanted in sass.widths("LDG"), vars(sass)
    # Through shared memory go two answers, as the programs of angles ask: has one a large angle, are adapters mixed.
    assert sass.shared <= (0 if case.form.startswith("table") else 16), vars(sass)


@pytest.mark.parametrize("case", EVERY_FORM + WORDS + OTHERS, ids=str)
def test_backward(compile_case, tmp_path, case):
    sass = Sass(compile_case(case, "sm_90", "backward"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    assert sass.registers <= 128, vars(sass)  # two programs of 256 lanes
    wanted = moved_at_once(case)
    assert wanted in sass.widths("LDG") and wanted in sass.widths("STG"), vars(sass)
    assert "U16" not in sass.widths("LDG") | sass.widths("STG"), vars(sass)
    assert not sass.row_loop_uses_shared_memory, vars(sass)


@pytest.mark.parametrize("kernel", ["rotate", "backward"])
@pytest.mark.parametrize("case", NARROW, ids=str)
def test_odd_rows_and_float64_do_not_spill(compile_case, tmp_path, case, kernel):
    sass = Sass(compile_case(case, "sm_90", kernel), tmp_path)
    assert sass.registers <= 168
    assert sass.shared <= 16 if kernel == "rotate" else not sass.row_loop_uses_shared_memory, vars(sass)
    if case.dtype != F64:  # CUDA's own sine of a double keeps an array on the stack
        assert not sass.stack and not sass.local, vars(sass)


@pytest.mark.parametrize("adapters", [1, 20, 1000])
@pytest.mark.parametrize("case", [*EVERY_FORM[1::2], *OTHERS[5:6]], ids=str)
def test_the_reduction_does_not_spill(compile_case, tmp_path, case, adapters):
    """For many partial sums of an adapter, some, and a few."""
    sass = Sass(compile_case(replace(case, adapters=adapters), "sm_90", "reduce"), tmp_path)
    assert not sass.stack and not sass.local, vars(sass)
    assert sass.registers <= 168 and "128" in sass.widths("LDG"), vars(sass)


@pytest.mark.parametrize("case", [Case(), WORDS[1], Case(form="table_half", batched=True)], ids=str)
def test_ampere(compile_case, tmp_path, case):
    for kernel in ("rotate", "backward", "reduce"):
        sass = Sass(compile_case(case, "sm_80", kernel), tmp_path)
        assert not sass.stack and not sass.local, vars(sass)
        if kernel == "rotate":
            assert sass.widths("STG") == {"128"}, vars(sass)


@pytest.mark.parametrize("case", [Case(), WORDS[1], Case(form="table_half", batched=True)], ids=str)
def test_amd(compile_case, case):
    for kernel in ("rotate", "backward", "reduce"):
        assembly = compile_case(case, "gfx942", kernel).asm["amdgcn"]
        assert re.search(r"\.vgpr_spill_count:\s+0\n", assembly)
        if kernel == "rotate":
            assert "global_load_dwordx4" in assembly and "global_load_ushort" not in assembly
        # Tensors below 2 GB.
        assembly = compile_case(case, "gfx942", kernel, small=True).asm["amdgcn"]
        assert "buffer_load_dword" in assembly and re.search(r"\.vgpr_spill_count:\s+0\n", assembly)
        assert "load_ushort" not in assembly and "store_short" not in assembly


@pytest.mark.parametrize("dtype", [I32, I64], ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_sorting_keeps_its_counts_in_registers(on_target, tmp_path, dtype, target):
    on_target(target)
    for name, (launch, dtypes) in sorting_launches(100_000, 1000, dtype).items():
        for aligned in (True, False):  # ids may begin anywhere
            compiled = compile_launch(launch, dtypes, target, aligned)
            if target == "gfx942":
                assert re.search(r"\.vgpr_spill_count:\s+0\n", compiled.asm["amdgcn"])
                continue
            sass = Sass(compiled, tmp_path)
            assert not sass.stack and not sass.local and sass.registers <= 128, (name, vars(sass))  # 512 lanes fit
            assert not sass.row_loop_uses_shared_memory, (name, vars(sass))


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_merging(on_target, tmp_path, dtype, target):
    on_target(target)
    launch = prepare.merge(0, (4096, 11008), 11008, 11008, dtype, True, 2048, 64)
    compiled = compile_launch(launch, [dtype, dtype, F64, F64], target)
    if target == "gfx942":
        assert "global_store_dwordx4" in compiled.asm["amdgcn"]
        return
    sass = Sass(compiled, tmp_path)
    assert not sass.stack and not sass.local and not sass.shared, vars(sass)
    assert sass.widths("STG") == {"128"} and "U16" not in sass.widths("LDG"), vars(sass)


@pytest.mark.parametrize("form", ["road_1", "road_4"])
def test_tables(tmp_path, form):
    width = param_width(form, 4096)
    launch = prepare.tables(100, 2048 if form == "road_1" else 4096, width, width, form, 64)
    sass = Sass(compile_launch(launch, [BF16, BF16, F32, F32], "sm_90"), tmp_path)
    assert not sass.stack and not sass.local and sass.registers <= 128, vars(sass)
    assert sass.widths("STG") == {"128"}, vars(sass)


SMALLEST = [
    Case(form=form, dtype=dtype, dim=2, group_size=2, batched=batched, rows=rows, adapters=1, split=rows > 1)
    for form, dtype, batched, rows in [
        ("road_1", BF16, False, 1),
        ("road_4", BF16, True, 1),
        ("table", F32, True, 2),
        ("table_half", F64, False, 2),
        ("road_2", F64, True, 1),
    ]
]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("case", SMALLEST, ids=str)
def test_the_smallest_shapes_compile(compile_case, case, target):
    """compile_launch fails where a kernel has a tile of one element, as does Triton's compiler."""
    for kernel in ("rotate", "backward", "reduce"):
        compile_case(case, target, kernel)
        compile_case(case, target, kernel, aligned=False)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_the_smallest_matrices_tables_and_banks_compile(on_target, target):
    on_target(target)
    for dtype in (BF16, F32, F64):
        for shape in ((2, 1), (2, 4096), (4, 1), (4096, 1), (4096, 2)):
            for width in (shape[0] // 2, shape[0]):
                launch = prepare.merge(0, shape, shape[1], shape[1], dtype, True, width, 2)
                compile_launch(launch, [dtype, dtype, F32, F32], target)
    for form in ("road_1", "road_2", "road_4"):
        compile_launch(prepare.tables(1, 1 if form == "road_1" else 2, 1, 1, form, 2), [F32] * 4, target)
    for ids, adapters in ((1, 1), (1, 0), (4097, 0)):
        for launch, dtypes in sorting_launches(ids, adapters, I64).values():
            compile_launch(launch, dtypes, target)


def test_a_tile_of_one_element_is_found(on_target):
    """The check that the tests above rely on."""
    on_target("sm_90")
    launch = prepare.merge(0, (2, 1), 1, 1, F32, True, 1, 2)
    launch.tail = (*launch.tail[:-2], 1, 1)  # the tile that merge_tile gave before
    with pytest.raises((AssertionError, RuntimeError)):
        compile_launch(launch, [F32] * 4, "sm_90")


def test_ids_outside_the_bank_are_asserted_on_the_device(compile_case, on_target):
    """Not only masked: the trap survives compilation, and only where there are ids."""
    for batched in (False, True):
        ptx = compile_case(Case(batched=batched), "sm_90", "rotate").asm["ptx"]
        assert ("__assertfail" in ptx) == batched
    on_target("sm_90")
    for name, (launch, dtypes) in sorting_launches(100_000, 1000, I64).items():
        ptx = compile_launch(launch, dtypes, "sm_90").asm["ptx"]
        assert ("__assertfail" in ptx) == (name in ("few", "count"))
