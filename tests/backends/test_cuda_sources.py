"""The CUDA sources compiled by nvcc, each file on its own: registers, spills, and the instructions of Hopper."""

import functools
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc")
# torch's extension builder defines these, which disable the implicit conversions of the 16-bit types.
DEFINES = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cpu_only,
    pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH"),
]
KERNELS = {  # in each file, one compilation of a template
    "add_rms_norm.cu": 18,
    "add_rms_norm_backward.cu": 20,
    "backward.cu": 32,
    "merge.cu": 8,
    "reduce.cu": 8,
    "rope.cu": 32,
    "rope_any.cu": 4,
    "rotate.cu": 92,
    "silu_mul.cu": 18,
    "silu_mul_backward.cu": 38,
    "singular.cu": 1,
    "sort_rows.cu": 4,
    "tables.cu": 2,
}
# At most. 128: four rows of 16 bytes and more in flight in a thread, and four blocks of 128 on a multiprocessor.
# Those of add_counts_kernel, of whose small blocks there are fewer than multiprocessors, limit nothing.
REGISTERS = {
    "sort_rows.cu": 128,
    "rotate.cu": 128,
    "backward.cu": 128,
    "reduce.cu": 128,
    "silu_mul.cu": 96,
    "silu_mul_backward.cu": 128,
    "rope.cu": 96,
}
# Sums of a block, from its first threads.
STORES_BESIDES_ROWS = {name: {"STG.E", "STG.E.64"} for name in ("backward.cu", "silu_mul_backward.cu")}
SOURCES = sorted(path.name for path in (CSRC / "cuda").glob("*.cu"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(source, arch): the object file, and the resources of each kernel in it. Compiled once for all tests."""
    folder = tmp_path_factory.mktemp("objects")
    return functools.cache(lambda source, arch: compile_cuda(source, arch, folder / f"{source}-{arch}.o"))


def compile_cuda(source: str, arch: str, target: Path) -> tuple[Path, dict[str, dict[str, int]]]:
    command = [NVCC, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v"]
    command += [f"-D__CUDA_NO_{name}__" for name in DEFINES] + [f"-I{CSRC}"]
    run = subprocess.run(
        [*command, "-c", str(CSRC / "cuda" / source), "-o", str(target)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = re.findall(pattern, run.stderr, re.DOTALL)
    names = subprocess.run(["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True).stdout
    keys = ("stack", "spill stores", "spill loads", "registers")
    kernels = {
        name: dict(zip(keys, map(int, f[1:]), strict=True)) for name, f in zip(names.splitlines(), found, strict=True)
    }
    return target, kernels


@pytest.mark.parametrize("arch", ["80", "90", "100"])
@pytest.mark.parametrize("source", SOURCES)
def test_no_spills_and_no_local_memory(compiled, source, arch):
    _, kernels = compiled(source, arch)
    assert len(kernels) == KERNELS[source]
    for name, resources in kernels.items():
        assert resources["registers"] <= REGISTERS.get(source, 64), name
        if "double" in name:  # for gradient checks; CUDA's sin and cos of a double keep an array on the stack
            continue
        assert not resources["stack"] + resources["spill stores"] + resources["spill loads"], f"{name}: {resources}"
        if re.search(r"rotate_kernel<.*TableSource<4>, 1>", name):  # decoding: 16 blocks of 128 threads at once
            assert resources["registers"] <= 48, name
        if arch != "80" and re.search(r"add_rms_norm_kernel<road::(BFloat16|Half)", name):
            assert resources["registers"] <= 48, name  # five blocks of a row of 4096 at once
        if re.search(r"rope_kernel<.*, 2, true>", name):
            assert resources["registers"] <= 72, name  # seven blocks


def find_cuobjdump() -> str | None:
    site = Path(sysconfig.get_path("purelib"))
    packaged = [*site.glob("nvidia/*/bin/cuobjdump"), *site.glob("triton/backends/nvidia/bin/cuobjdump")]
    return shutil.which("cuobjdump") or next(map(str, packaged), None)


@pytest.fixture(scope="module")
def instructions(compiled):
    """instructions(source): kernel -> its instructions on compute capability 9.0, without operands."""
    if find_cuobjdump() is None:
        pytest.skip("no cuobjdump (PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)")
    return functools.cache(lambda source: disassemble(compiled(source, "90")[0]))


def disassemble(target: Path) -> dict[str, list[str]]:
    sass = subprocess.run([find_cuobjdump(), "-sass", str(target)], capture_output=True, text=True, check=True).stdout
    functions = sass.split("Function : ")[1:]
    mangled = "\n".join(function.split()[0] for function in functions)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True).stdout.splitlines()
    instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)")
    return {name: instruction.findall(function) for name, function in zip(names, functions, strict=True)}


def count(found: list[str], *beginnings: str) -> int:
    return sum(op.startswith(beginnings) for op in found)


@pytest.mark.parametrize("source", SOURCES)
def test_every_kernel_waits_for_its_inputs_and_lets_the_next_start(instructions, source):
    """Launched dependently (csrc/cuda/launch.cuh): griddepcontrol.wait and .launch_dependents."""
    for name, found in instructions(source).items():
        assert count(found, "ACQBULK") > 0 and count(found, "PREEXIT") > 0, name


def test_forward_is_without_barriers_and_shared_memory(instructions):
    """What measured slowest on an H100 and an H200 in a kernel that only moves memory."""
    for source in ("rotate.cu", "merge.cu", "tables.cu", "silu_mul.cu", "silu_mul_backward.cu", "rope.cu"):
        for name, found in instructions(source).items():
            assert "backward_kernel" in name or count(found, "BAR", "LDS", "STS", "ATOM", "RED") == 0, name


def test_decoding_is_a_short_kernel(instructions):
    few = r"Halves<(float, 2|road::BFloat16, 4|road::Half, 4), true>, true, .*TableSource<4>, 1>"  # 8 bytes a thread
    decoding = [n for n in instructions("rotate.cu") if re.search(few, n)]
    assert len(decoding) == 3
    for name in decoding:
        found = instructions("rotate.cu")[name]
        assert len(found) - count(found, "NOP") <= 400, name  # NOPs fill up the end and are not reached


def test_the_gradient_of_a_norm_loads_all_of_a_short_row_before_its_barrier(instructions):
    """s and both gradients, of one pack or of two, and the first of a weight, one after the other."""
    wide = [n for n in instructions("add_rms_norm_backward.cu") if re.search(r"(BFloat16|Half), 8, true, [12]>", n)]
    assert len(wide) == 4
    for name in wide:
        found = instructions("add_rms_norm_backward.cu")[name]
        assert count(found[found.index("BAR.SYNC.DEFER_BLOCKING") :], "LDG") == 0, name
        assert "L" * (4 if name.split(">(")[0].endswith("1") else 7) in runs_of_loads(found, ".128"), name
        assert {op for op in found if op.startswith("STG")} == {"STG.E.128"}, name


def test_the_tables_of_a_row_are_asked_for_together(instructions):
    """Of 16 bits too, whose dtype has a branch: r2 right after r1, as the second half of a row after the first."""
    wide = [n for n in instructions("rotate.cu") if re.search(r"Halves<.*(BFloat16|Half), 8, .*TableSource<2>, 1>", n)]
    assert len(wide) == 2
    for name in wide:
        loads = [at for at, op in enumerate(instructions("rotate.cu")[name]) if op == "LDG.E.128"]
        assert len(loads) % 2 == 0 and all(r2 - r1 <= 6 for r1, r2 in zip(loads[::2], loads[1::2], strict=True)), name


WIDE = {
    "rotate.cu": 24,
    "backward.cu": 6,
    "silu_mul.cu": 6,
    "silu_mul_backward.cu": 10,
    "add_rms_norm.cu": 6,
    "rope.cu": 14,
}


@pytest.mark.parametrize("source", WIDE)
def test_16_bit_rows_move_16_bytes_at_a_time(instructions, source):
    """Of the backward where the features of a pair share coefficients: own ones leave registers for 8."""
    wide = [name for name in instructions(source) if re.search(r"(Halves|Adjacent)<.*(BFloat16|Half), 8, true>", name)]
    assert len(wide) == WIDE[source]
    for name in wide:
        found = instructions(source)[name]
        assert count(found, "LDG.E.128") >= 1, name
        assert {op for op in found if op.startswith("STG") and "128" not in op} <= STORES_BESIDES_ROWS.get(
            source, set()
        ), name
        assert count(found, "LDL", "STL") == 0, name


def test_backward_loads_its_rows_before_it_uses_them(instructions):
    """Eight loads of 16 bytes one after the other: two tensors, two halves, two rows at once."""
    wide = [n for n in instructions("backward.cu") if re.search(r"Halves<.*(BFloat16|Half), 8, true>, true, ", n)]
    assert len(wide) == 2
    for name in wide:
        assert "L" * 8 in runs_of_loads(instructions("backward.cu")[name], ".128"), name


def test_the_backward_of_silu_mul_loads_its_rows_before_it_uses_them(instructions):
    """Twelve loads of 8 bytes: the gradient, gate and up, two halves, two rows at once."""
    pattern = r"backward_kernel<.*Halves<.*(BFloat16|Half), 4, true>"
    wide = [n for n in instructions("silu_mul_backward.cu") if re.search(pattern, n)]
    assert len(wide) == 4
    for name in wide:
        assert "L" * 12 in runs_of_loads(instructions("silu_mul_backward.cu")[name], ".64"), name


def runs_of_loads(found: list[str], width: str) -> str:
    """Arithmetic on floats as ".", loads of this width as "L", in the order of the program."""
    memory = [op for op in found if op.startswith(("LDG", "HFMA", "FFMA", "FMUL", "FADD"))]
    return "".join("L" if op.startswith(f"LDG.E{width}") else "." for op in memory)


@pytest.mark.parametrize(("source", "kernel", "rows"), [("silu_mul.cu", "silu_mul", 4), ("rope.cu", "rope", 4)])
def test_a_fused_op_loads_its_rows_before_it_uses_them(instructions, source, kernel, rows):
    """Two halves of gate and of up, or of what RoPE pairs; then tables, of which every dtype has a branch."""
    wide = [n for n in instructions(source) if re.search(rf"{kernel}_kernel<.*Halves<.*, 8, true>", n)]
    for name in wide:
        if source == "silu_mul.cu" or re.search(r", 2, (true|false)>\(", name):
            assert "L" * rows in runs_of_loads(instructions(source)[name], ".128"), name


def test_rope_asks_for_the_id_and_the_position_of_a_row_before_it_waits_for_either(instructions):
    """Of 4 or of 8 bytes each; before a branch that an assertion takes on the first of them."""
    for name, found in instructions("rope.cu").items():
        asked = found[found.index("ACQBULK") : found.index("CALL.ABS.NOINC")]
        assert asked.count("LDG.E") == 2 and asked.count("LDG.E.64") >= 2, name


@pytest.mark.parametrize("source", ["silu_mul.cu", "silu_mul_backward.cu"])
def test_silu_takes_two_special_functions_for_an_output(instructions, source):
    """exp and a reciprocal: a division in full would be ten instructions and a branch."""
    for name, found in instructions(source).items():
        if "backward_kernel" in name:
            continue
        if match := re.search(r"(Halves|Adjacent)<.*, (\d+), true>", name):
            outputs = int(match[2]) * (2 if match[1] == "Halves" else 1)
            assert count(found, "MUFU") == 2 * outputs, name


@pytest.mark.parametrize("source", ["add_rms_norm.cu", "add_rms_norm_backward.cu"])
def test_a_norm_has_one_barrier(instructions, source):
    for name, found in instructions(source).items():
        assert count(found, "BAR.SYNC") == 1 and count(found, "ATOM", "RED.", "LDL", "STL") == 0, name
        if "double" not in name:
            assert count(found, "SHFL") >= 5, name
