"""Builds the extension road_kernels._C.  Everything declarative is in pyproject.toml.

Environment:
    ROAD_KERNELS_BUILD   "auto" (default): compile what can be compiled here, and record why the rest is not;
                         "0": pure Python; "1": what cannot be compiled is an error.
    ROAD_KERNELS_CUDA    "auto" (default): compile the CUDA sources if nvcc and a CUDA build of torch are there;
                         "0": never; "1": fail if they cannot be.
    ROAD_KERNELS_LOCAL_VERSION   "1": the version names what the extension was built for, as in 0.2.0+cu130torch2.11
                         (make wheel).
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS: as usual for torch extensions.
"""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

import setuptools
from setuptools import setup

ROOT = Path(__file__).parent
# The kernels take no error path through errno and no floating-point traps; signed zeros and NaN stay exact.
CXX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi", "-g0"]
# Folders whose files are compiled as one, because torch's headers, and the templates that the files share, cost more
# than what is made of them: 37 s of the processor instead of 55.  The files of csrc/cpu/isa are for different ones.
TOGETHER = ("csrc/binding", "csrc/cpu")
# What the sources need of a compiler, in little: GCC 8 has no __builtin_convertvector, a Python may lack its headers.
PROBE = """
#include <Python.h>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif
typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
template <class V>
Ints positive_part(const V& v) {
  if constexpr (std::is_same_v<V, Floats>) return __builtin_convertvector(v > 0 ? v : Floats{}, Ints);
  else return Ints{};
}
void run(const Floats* v, Ints* out, int n) {
#pragma omp parallel for
  for (int k = 0; k < n; ++k) out[k] = positive_part(v[k]);
}
"""


class Unusable(Exception):
    """Why something cannot be compiled here, as a part of a sentence."""


def choice(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"road_kernels: {name} must be auto, 0 or 1, got {value!r}")
    return value


@functools.cache
def find_compiler() -> tuple[str, list[str], bool]:
    """The compiler, the flags that it needs, and whether it has OpenMP."""
    if platform.system() == "Windows":
        raise Unusable("the kernels need GCC or Clang, and torch builds extensions with MSVC on Windows")
    wanted = shlex.split(os.environ.get("CXX", ""))
    commands = [[name] for name in ("c++", "g++", "clang++")] if not wanted else [wanted]
    commands = [[path, *options] for name, *options in commands if (path := shutil.which(name))]
    if not commands:
        raise Unusable(f"no C++ compiler was found ({wanted[0] if wanted else 'CXX, c++, g++, clang++'})")
    for command in commands:
        for openmp in (["-fopenmp"], []):
            # torch asks for the first of these; its headers want no more than the second.
            for standard in ("-std=c++20", "-std=c++17"):
                said = compile_probe([*command, standard, *openmp])
                if said is None:
                    return shlex.join(command), openmp + [standard] * (standard != "-std=c++20"), bool(openmp)
    raise Unusable(f"{command[0]} could not compile C++17 with vector extensions ({said})")


def compile_probe(command: list[str]) -> str | None:
    """The first error, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        command = [*command, "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", str(source)]
        try:
            run = subprocess.run(
                [*command, "-o", f"{folder}/probe.so"], capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            return str(error)
    if run.returncode == 0:
        return None
    said = run.stderr + run.stdout
    return (re.search(r"error: .*", said) or re.search(r".*", said))[0][:120] or f"exit status {run.returncode}"


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


@functools.cache
def nvcc_version(cuda_home: str) -> tuple[int, int]:
    said = subprocess.run([f"{cuda_home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def cuda_sources() -> list[str]:
    """Also sets what torch.utils.cpp_extension reads when it is imported: it guesses from PATH, and from its GPU."""
    import torch

    sources = sorted(glob("csrc/cuda/*.cu", root_dir=ROOT))
    home = find_cuda_home()
    reasons = []
    if not sources:
        reasons.append("this version has no CUDA sources")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is not a CUDA build")
    if home is None:
        reasons.append("no CUDA toolkit (nvcc and include/cuda_runtime.h) was found")
    elif torch.version.cuda and nvcc_version(home)[0] != int(torch.version.cuda.split(".")[0]):
        reasons.append(f"nvcc is of CUDA {'.'.join(map(str, nvcc_version(home)))}, and torch of {torch.version.cuda}")
    if reasons:
        raise Unusable("; ".join(reasons))
    os.environ["CUDA_HOME"] = home
    # nvcc 12.8 is the first to know 10.0.
    default = "8.0;9.0;10.0+PTX" if nvcc_version(home) >= (12, 8) else "8.0;9.0+PTX"
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)
    return sources


def extension(kind: str) -> dict:
    """The arguments of setup() for the "CUDA" and CPU kernels, or for the "CPU" ones only."""
    for name in ("ROAD_KERNELS_BUILD", "ROAD_KERNELS_CUDA")[: 1 + (kind == "CUDA")]:
        if choice(name) == "0":
            raise Unusable(f"{name}=0")
    try:
        import torch

        cuda = cuda_sources() if kind == "CUDA" else []
    except (ImportError, OSError) as error:
        raise Unusable(f"torch or nvcc cannot be used: {error}") from error
    compiler, needed, openmp = find_compiler()
    os.environ["CXX"] = os.environ.get("CXX") or compiler
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension.with_options(use_ninja=True)):
        def build_extension(self, ext):
            ext.sources = joined(ext.sources, Path(self.build_temp))
            super().build_extension(ext)

    # Compressed, as in torch's own libraries: a third of the size.
    flags = {"cxx": CXX_FLAGS + needed, "nvcc": ["-O3", "-Xfatbin", "-compress-all"]}
    sources = sorted(glob("csrc/cpu/**/*.cpp", root_dir=ROOT, recursive=True))
    sources += [s for s in sorted(glob("csrc/binding/*.cpp", root_dir=ROOT)) if cuda or "cuda" not in Path(s).name]
    if cuda:
        flags["cxx"] += [
            f'-DROAD_CUDA_VERSION="{torch.version.cuda}"',
            f'-DROAD_CUDA_ARCHITECTURES="{os.environ["TORCH_CUDA_ARCH_LIST"]}"',
        ]
    module = (CUDAExtension if cuda else CppExtension)(
        "road_kernels._C",
        sources + cuda,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"] * openmp + ["-Wl,-s"] * (platform.system() == "Linux"),
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


def joined(sources: list[str], folder: Path) -> list[str]:
    """``sources`` with a file in ``folder`` in place of those that are compiled together. The longest comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {}
    for parent in TOGETHER:
        parts = [source for source in sources if Path(source).parent == Path(parent)]
        path = folder / f"{Path(parent).name}.cpp"
        path.write_text("".join(f'#include "{Path(part).relative_to("csrc")}"\n' for part in parts))
        whole[str(path)] = parts
    together = {part for parts in whole.values() for part in parts}
    return [*whole, *(source for source in sources if source not in together)]


def version_options(kind: str) -> dict:
    """The options of setup() that add a local version, of a build with "CUDA", for the "CPU", or with "nothing"."""
    if os.environ.get("ROAD_KERNELS_LOCAL_VERSION") != "1":
        return {}
    local = "python"
    if kind != "nothing":
        import torch

        device = f"cu{torch.version.cuda.replace('.', '')}" if kind == "CUDA" else "cpu"
        local = f"{device}torch{'.'.join(torch.__version__.split('.')[:2])}"
    return {"options": {"egg_info": {"tag_build": f"+{local}"}}}


def write_build_info(built: bool, without: dict[str, str]) -> None:
    version, reason = None, None
    if built:
        import torch

        version = torch.__version__
        if not find_compiler()[2]:
            without = without | {"OpenMP": f"{find_compiler()[0]} has none, so the CPU kernels use one thread"}
    else:
        reason = f"not built at installation: {without['CPU']}"
        print(f"road_kernels: installing without compiled kernels ({reason}); the pure PyTorch path is used")
    text = f'"""Written by setup.py."""\n\nTORCH_VERSION = {version!r}\nREASON = {reason!r}\nWITHOUT = {without!r}\n'
    (ROOT / "road_kernels" / "_build_info.py").write_text(text)


def main() -> None:
    """Installs the most that can be compiled here: with CUDA, for the CPU, or Python alone."""
    if int(setuptools.__version__.split(".")[0]) < 77:  # a new virtual environment of Python 3.11 has 65
        sys.exit(
            f"road_kernels: setuptools 77 or newer is needed, got {setuptools.__version__}: pip install -U setuptools"
        )
    if "dist_info" in sys.argv and os.environ.get("ROAD_KERNELS_LOCAL_VERSION") != "1":
        return setup()  # metadata, which pip asks for before it builds: the same whatever can be compiled
    required = {"CUDA": choice("ROAD_KERNELS_CUDA") == "1", "CPU": choice("ROAD_KERNELS_BUILD") == "1"}
    without = {}  # what is left out: why
    for kind in ("CUDA", "CPU"):
        try:
            arguments = extension(kind)
        except Unusable as reason:
            if required[kind]:
                sys.exit(f"road_kernels: ROAD_KERNELS_{'CUDA' if kind == 'CUDA' else 'BUILD'}=1, but {reason}")
            without[kind] = str(reason)
            continue
        write_build_info(True, without)
        try:
            setup(**arguments, **version_options(kind))
            return
        except (Exception, SystemExit) as error:
            if any(required.values()) or str(error) == "interrupted":
                raise
            first_line = (str(error) or repr(error)).splitlines()[0][:200]
            without[kind] = f"the build failed ({first_line}); ROAD_KERNELS_BUILD=1 shows how"
    write_build_info(False, without)
    setup(**version_options("nothing"))


if __name__ == "__main__":  # also when pip runs it
    main()
