"""Builds the extension road_kernels._C.  Everything declarative is in pyproject.toml.

Environment:
    ROAD_KERNELS_BUILD   "auto" (default): compile if there is a C++ compiler; "0": pure Python; "1": fail without one.
    ROAD_KERNELS_CUDA    "auto" (default): compile the CUDA sources if nvcc and a CUDA build of torch are there;
                         "0": never; "1": fail if they cannot be.
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS: as usual for torch extensions.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# The kernels take no error path through errno and no floating-point traps; signed zeros and NaN stay exact.
CXX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi", "-g0"]


def fail(message: str) -> None:
    sys.exit(f"road_kernels: {message}")


def choice(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        fail(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def find_compiler() -> str | None:
    wanted = os.environ.get("CXX", "").split()
    return next((path for name in [*wanted[:1], "c++", "g++", "clang++"] if (path := shutil.which(name))), None)


def find_cuda_home() -> str | None:
    """The toolkit's own folder, the one with include/cuda_runtime.h: nvcc on PATH may be a wrapper somewhere else."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))
        verbose = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True)
        candidates += re.findall(r"^#\$ TOP=(.+)$", verbose.stderr, re.MULTILINE)
    candidates += ["/usr/local/cuda", *sorted(glob("/usr/local/cuda-*"), reverse=True)]
    for home in filter(None, candidates):
        if Path(home, "include", "cuda_runtime.h").exists() and Path(home, "bin", "nvcc").exists():
            return os.path.realpath(home)
    return None


def default_architectures(cuda_home: str) -> str:
    version = subprocess.run([f"{cuda_home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    major, minor = map(int, re.search(r"release (\d+)\.(\d+)", version).groups())
    return "8.0;9.0;10.0+PTX" if (major, minor) >= (12, 8) else "8.0;9.0+PTX"  # nvcc 12.8 is the first to know 10.0


def cuda_sources() -> list[str]:
    import torch

    wanted = choice("ROAD_KERNELS_CUDA")
    sources = sorted(glob("csrc/cuda/*.cu", root_dir=ROOT))
    reasons = []
    if not sources:
        reasons.append("this version has no CUDA sources")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is not a CUDA build")
    home = find_cuda_home()
    if home is None:
        reasons.append("no CUDA toolkit (nvcc and include/cuda_runtime.h) was found")
    if wanted == "0" or reasons:
        if wanted == "1":
            fail("ROAD_KERNELS_CUDA=1, but " + "; ".join(reasons))
        return []
    # Both before torch.utils.cpp_extension is imported: it guesses from PATH, and from the GPU that it sees.
    os.environ["CUDA_HOME"] = home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(home))
    return sources


def extension() -> dict:
    wanted = choice("ROAD_KERNELS_BUILD")
    build_info = ROOT / "road_kernels" / "_build_info.py"
    if wanted == "0" or not (compiler := find_compiler()):
        if wanted == "1":
            fail("ROAD_KERNELS_BUILD=1, but no C++ compiler was found (CXX, c++, g++, clang++)")
        reason = (
            "ROAD_KERNELS_BUILD=0 when it was installed" if wanted == "0" else "no C++ compiler when it was installed"
        )
        print(f"road_kernels: installing without compiled kernels ({reason}); the pure PyTorch path is used")
        build_info.write_text(f'"""Written by setup.py."""\n\nTORCH_VERSION = None\nREASON = "not built: {reason}"\n')
        return {}
    os.environ.setdefault("CXX", compiler)

    import torch

    cuda = cuda_sources()
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    flags = {"cxx": list(CXX_FLAGS), "nvcc": ["-O3"]}
    sources = sorted(glob("csrc/cpu/**/*.cpp", root_dir=ROOT, recursive=True))
    sources += [s for s in sorted(glob("csrc/binding/*.cpp", root_dir=ROOT)) if cuda or "cuda" not in Path(s).name]
    if cuda:
        flags["cxx"] += [
            f'-DROAD_CUDA_VERSION="{torch.version.cuda}"',
            f'-DROAD_CUDA_ARCHITECTURES="{os.environ["TORCH_CUDA_ARCH_LIST"]}"',
        ]
    kind = CUDAExtension if cuda else CppExtension
    module = kind(
        "road_kernels._C",
        sources + cuda,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        extra_link_args=["-fopenmp", "-Wl,-s"],
    )
    build_info.write_text(f'"""Written by setup.py."""\n\nTORCH_VERSION = "{torch.__version__}"\nREASON = None\n')
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)}}


setup(**extension())
