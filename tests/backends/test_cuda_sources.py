"""The CUDA sources compiled by nvcc, each file on its own: registers, spills, local memory, 16-byte accesses."""

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
    assert len(kernels) == {"rotate.cu": 32, "merge.cu": 8, "sort_rows.cu": 1}.get(source, len(kernels)) > 0
    for name, resources in kernels.items():
        assert resources["registers"] <= 128, name  # two blocks of 256 threads fit a multiprocessor
        if "double" in name:  # for gradient checks; CUDA's sin and cos of a double keep an array on the stack
            continue
        # Three blocks where the rows of a pair share their coefficients, to keep enough loads in flight.
        assert resources["registers"] <= 80 or not re.search(r"(rotate|backward)_kernel<.*, true>\(", name), name
        assert not resources["stack"] + resources["spill stores"] + resources["spill loads"], f"{name}: {resources}"


def find_cuobjdump() -> str | None:
    site = Path(sysconfig.get_path("purelib"))
    packaged = [*site.glob("nvidia/*/bin/cuobjdump"), *site.glob("triton/backends/nvidia/bin/cuobjdump")]
    return shutil.which("cuobjdump") or next(map(str, packaged), None)


@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump (PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)")
def test_bfloat16_forward_moves_16_bytes_at_a_time(compiled):
    target, _ = compiled("rotate.cu", "90")
    sass = subprocess.run([find_cuobjdump(), "-sass", str(target)], capture_output=True, text=True, check=True).stdout
    wide = 0
    for function in sass.split("Function : ")[1:]:
        name = subprocess.run(["c++filt", function.split()[0]], capture_output=True, text=True).stdout
        if "BFloat16, 8, true" not in name:
            continue
        wide += 1
        accesses = set(re.findall(r"\b(?:LDG|STG|LDL|STL)[A-Z0-9.]*", function))
        assert any(a.startswith("LDG.E.128") for a in accesses), f"{name}: {accesses}"
        # Rows are loaded and stored in 16 bytes only; narrower loads are of parameters and ids.
        assert {a for a in accesses if a.startswith("STG")} == {"STG.E.128"}, f"{name}: {accesses}"
        assert not any(a.startswith(("LDL", "STL")) for a in accesses), f"{name}: {accesses}"
    assert wide == 4  # adjacent and half-split pairs, shared and own coefficients
