"""What setup.py makes of compilers, platforms and CUDA toolkits, with stand-ins for them. Nothing is built here."""

import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")
TAKES_ALL = "exit 0"
FAILS = (
    """echo "probe.cpp:11: error: '__builtin_convertvector' was not declared" >&2; echo "and a page more" >&2; exit 1"""
)


@pytest.fixture
def setup_py(monkeypatch, tmp_path):
    """setup.py as a module, which writes to a folder of the test."""
    for name in (
        "CXX",
        "CUDA_HOME",
        "CUDA_PATH",
        "TORCH_CUDA_ARCH_LIST",
        "ROAD_KERNELS_BUILD",
        "ROAD_KERNELS_CUDA",
        "ROAD_KERNELS_LOCAL_VERSION",
    ):
        monkeypatch.setenv(name, "")  # so that what setup.py sets is undone
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "road_kernels").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """compiler(script, name): a stand-in, the only one on PATH but for those made before."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(script: str, name: str = "c++") -> str:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return str(path)

    return make


def build_info(setup_py) -> dict:
    found = {}
    exec((setup_py.ROOT / "road_kernels" / "_build_info.py").read_text(), found)
    return found


def run(setup_py, monkeypatch, *failures) -> list[dict]:
    """main(), with a setup() that raises these one after the other, then succeeds. Returns what it was called with."""
    calls, failures = [], list(failures)

    def setup(**arguments):
        calls.append(arguments)
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(setup_py, "setup", setup)
    setup_py.main()
    return calls


def test_an_old_setuptools(setup_py, monkeypatch):
    """Without this: a page about pyproject.toml."""
    monkeypatch.setattr(setup_py.setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r"setuptools 77 or newer is needed, got 65.5.0: pip install -U setuptools"):
        setup_py.main()


@pytest.mark.parametrize(
    ("kind", "local"), [("CUDA", "+cu130torch2.13"), ("CPU", "+cputorch2.13"), ("nothing", "+python")]
)
def test_local_versions(setup_py, monkeypatch, kind, local):
    monkeypatch.setattr(torch, "__version__", "2.13.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert setup_py.version_options(kind) == {}
    monkeypatch.setenv("ROAD_KERNELS_LOCAL_VERSION", "1")
    assert setup_py.version_options(kind) == {"options": {"egg_info": {"tag_build": local}}}


def test_the_compiler_of_this_machine(setup_py):
    command, _, openmp = setup_py.find_compiler()
    assert Path(command).is_file() and isinstance(openmp, bool)


def test_everything_is_there(setup_py, compiler, monkeypatch):
    path = compiler(TAKES_ALL)
    monkeypatch.setenv("CXX", "")
    assert setup_py.find_compiler() == (path, ["-fopenmp"], True)
    (arguments,) = run(setup_py, monkeypatch)
    (module,) = arguments["ext_modules"]
    assert "-fopenmp" in module.extra_compile_args["cxx"] and "-fopenmp" in module.extra_link_args
    assert not [flag for flag in module.extra_compile_args["cxx"] if flag.startswith("-std")]  # as torch has it
    assert build_info(setup_py)["TORCH_VERSION"] == torch.__version__
    assert list(build_info(setup_py)["WITHOUT"]) == ["CUDA"]
    assert os.environ["CXX"] == path  # which torch reads


def test_without_openmp(setup_py, compiler, monkeypatch):
    """As Clang is installed on macOS, and on Linux without libomp."""
    path = compiler('case "$*" in *-fopenmp*) echo "error: -lomp not found" >&2; exit 1;; esac')
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    (arguments,) = run(setup_py, monkeypatch)
    (module,) = arguments["ext_modules"]
    assert "-fopenmp" not in module.extra_compile_args["cxx"]
    assert module.extra_link_args == []  # and no -s, which Apple's linker does not know
    assert build_info(setup_py)["WITHOUT"]["OpenMP"] == f"{path} has none, so the CPU kernels use one thread"


def test_a_compiler_that_knows_cpp_17_only(setup_py, compiler):
    path = compiler('case "$*" in *-std=c++20*) exit 1;; esac')
    assert setup_py.find_compiler() == (path, ["-fopenmp", "-std=c++17"], True)


def test_another_compiler_where_the_default_is_too_old(setup_py, compiler):
    compiler(FAILS)
    path = compiler(TAKES_ALL, "clang++")
    assert setup_py.find_compiler()[0] == path


@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_no_compiler_that_can(setup_py, compiler, monkeypatch, system, capsys):
    path = compiler(FAILS)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert run(setup_py, monkeypatch) == [{}]
    assert build_info(setup_py)["TORCH_VERSION"] is None
    why = {
        "Linux": f"{path} could not compile C++17 with vector extensions "
        "(error: '__builtin_convertvector' was not declared)",
        "Windows": "the kernels need GCC or Clang, and torch builds extensions with MSVC on Windows",
    }
    assert build_info(setup_py)["REASON"] == f"not built at installation: {why[system]}"
    said = capsys.readouterr().out
    assert why[system] in said and said.count("\n") == 1
    monkeypatch.setenv("ROAD_KERNELS_BUILD", "1")
    with pytest.raises(SystemExit) as stopped:
        run(setup_py, monkeypatch)
    assert stopped.value.code == f"road_kernels: ROAD_KERNELS_BUILD=1, but {why[system]}"


@pytest.mark.parametrize("wanted", ["nosuch", "nosuch -m64"])
def test_a_compiler_asked_for_that_is_not_there(setup_py, compiler, monkeypatch, wanted):
    compiler(TAKES_ALL)
    monkeypatch.setenv("CXX", wanted)
    with pytest.raises(setup_py.Unusable, match=r"no C\+\+ compiler was found \(nosuch\)"):
        setup_py.find_compiler()


def test_pure_python_when_asked_for(setup_py, compiler, monkeypatch):
    compiler(TAKES_ALL)
    monkeypatch.setenv("ROAD_KERNELS_BUILD", "0")
    assert run(setup_py, monkeypatch) == [{}]
    assert build_info(setup_py)["REASON"] == "not built at installation: ROAD_KERNELS_BUILD=0"


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """A CUDA build of torch, CUDA sources, and a toolkit whose nvcc is of the release that toolkit(...) is given."""

    def make(release: str) -> str:
        home = tmp_path / "cuda"
        (home / "bin").mkdir(parents=True)
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
        nvcc = home / "bin" / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
        nvcc.chmod(0o755)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setenv("CUDA_HOME", str(home))
        (tmp_path / "csrc" / "cuda").mkdir(parents=True)
        (tmp_path / "csrc" / "cuda" / "rotate.cu").touch()
        return str(home)

    return make


def test_cuda_sources(setup_py, toolkit):
    home = toolkit("13.0")
    assert setup_py.cuda_sources() == ["csrc/cuda/rotate.cu"]
    assert os.environ["CUDA_HOME"] == home
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0;10.0+PTX"


def test_nvcc_of_another_cuda_than_torch(setup_py, toolkit):
    toolkit("11.8")
    with pytest.raises(setup_py.Unusable, match=r"nvcc is of CUDA 11\.8, and torch of 13\.0"):
        setup_py.cuda_sources()


def test_an_nvcc_that_does_not_run(setup_py, toolkit):
    home = toolkit("13.0")
    Path(home, "bin", "nvcc").write_bytes(b"not a program of this machine")
    with pytest.raises(setup_py.Unusable, match="torch or nvcc cannot be used: "):
        setup_py.extension("CUDA")


def staged(setup_py, monkeypatch, compiler):
    """Both kinds can be tried, as far as one knows before building."""
    compiler(TAKES_ALL)
    monkeypatch.setattr(setup_py, "extension", lambda kind: {"kind": kind})


def test_a_build_that_fails_is_left_out(setup_py, monkeypatch, compiler):
    staged(setup_py, monkeypatch, compiler)
    assert run(setup_py, monkeypatch, RuntimeError("nvcc too new\nand more")) == [{"kind": "CUDA"}, {"kind": "CPU"}]
    assert build_info(setup_py)["TORCH_VERSION"] == torch.__version__
    assert build_info(setup_py)["WITHOUT"] == {
        "CUDA": "the build failed (nvcc too new); ROAD_KERNELS_BUILD=1 shows how",
    }
    calls = run(setup_py, monkeypatch, RuntimeError(), SystemExit("error: command failed"))
    assert calls == [{"kind": "CUDA"}, {"kind": "CPU"}, {}]
    assert build_info(setup_py)["TORCH_VERSION"] is None
    assert "the build failed (error: command failed)" in build_info(setup_py)["REASON"]


@pytest.mark.parametrize("name", ["ROAD_KERNELS_BUILD", "ROAD_KERNELS_CUDA"])
def test_errors_stay_errors_when_asked_for(setup_py, monkeypatch, compiler, name):
    staged(setup_py, monkeypatch, compiler)
    monkeypatch.setenv(name, "1")
    with pytest.raises(RuntimeError, match="nvcc too new"):
        run(setup_py, monkeypatch, RuntimeError("nvcc too new"))


def test_an_interrupted_build_ends(setup_py, monkeypatch, compiler):
    staged(setup_py, monkeypatch, compiler)
    with pytest.raises(SystemExit, match="interrupted"):
        run(setup_py, monkeypatch, SystemExit("interrupted"))


def test_metadata_is_the_same_whatever_can_be_compiled(setup_py, monkeypatch):
    """pip asks for it before it builds: no compiler is looked for, and nothing written."""
    monkeypatch.setattr(sys, "argv", ["setup.py", "dist_info", "--output-dir", "."])
    monkeypatch.setattr(setup_py, "extension", lambda kind: pytest.fail("looked for a compiler"))
    assert run(setup_py, monkeypatch) == [{}]
    assert not (setup_py.ROOT / "road_kernels" / "_build_info.py").exists()


def test_files_that_are_compiled_together(setup_py, tmp_path):
    paths = sorted(path for folder in ("binding", "cpu") for path in (ROOT / "csrc" / folder).rglob("*.cpp"))
    sources = [str(path.relative_to(ROOT)) for path in paths]
    *wholes, first = (joined := setup_py.joined(sources, tmp_path / "temporary"))[:3]
    assert [Path(whole).name for whole in wholes] == ["binding.cpp", "cpu.cpp"]
    included = re.findall(r'#include "(.*)"', "".join(Path(whole).read_text() for whole in wholes))
    alone = {source for source in sources if "/isa/" in source}  # each for its own processor
    assert first in alone and {*joined[2:]} == alone
    assert sorted(f"csrc/{name}" for name in included) == sorted({*sources} - alone)
