"""Wheels built from a clean copy of the sources, and the warnings of a missing or broken extension."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import road_kernels as rk

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SOURCES = (
    "csrc",
    "road_kernels",
    "python_fallback",
    "tests/cpp",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CMakeLists.txt",
    "LICENSE",
)

# Imports from the unpacked wheel at sys.argv[1], in a folder without the project.
USE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, road_kernels as rk, road_kernels.python_fallback as plain
    x, theta, alpha = torch.randn(3, 64), torch.randn(32), torch.rand(32) + 0.5
    for _ in range(3):
        z = rk.road_apply(x, theta, alpha)
    torch.testing.assert_close(z, plain.road_apply(x, theta, alpha))
assert rk.__file__.startswith(sys.argv[1]) and plain.__file__.startswith(sys.argv[1])
print(rk.backend_info()["automatic"]["cpu"], rk.backend_info()["backends"]["cpu"]["reason"], sep="|")
print(*[str(w.message) for w in caught if "road_kernels" in str(w.message)], sep="|")
"""


def build_wheel(folder: Path, source: Path | None = None, **environment) -> Path:
    run = pip_wheel(folder, source, **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.whl"))


def clean_copy(source: Path) -> Path:
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.py")
            shutil.copytree(path, source / name, ignore=ignored, symlinks=True)
        else:
            shutil.copy(path, source)
    return source


def pip_wheel(folder: Path, source: Path | None = None, **environment) -> subprocess.CompletedProcess:
    source = source or clean_copy(folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(folder),
        str(source),
    ]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def use(wheel_or_folder: Path, folder: Path) -> tuple[str, str, list[str]]:
    target = wheel_or_folder
    if target.suffix == ".whl":
        target = folder / "installed"
        zipfile.ZipFile(wheel_or_folder).extractall(target)
    run = subprocess.run([sys.executable, "-c", USE, str(target)], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    choice, warnings = run.stdout.splitlines()
    return *choice.split("|"), [w for w in warnings.split("|") if w]


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    """Built without a compiler: nothing is on PATH."""
    folder = tmp_path_factory.mktemp("pure")
    return build_wheel(folder, PATH=str(folder), CXX="", CC="")


def test_without_a_compiler(pure_wheel, tmp_path):
    names = zipfile.ZipFile(pure_wheel).namelist()
    assert "road_kernels/python_fallback/rotate.py" in names
    assert {"road_kernels/py.typed", "road_kernels/_C.pyi"} <= set(names)
    assert not [n for n in names if n.endswith(".so")]
    choice, reason, warnings = use(pure_wheel, tmp_path)
    assert choice == "python"
    assert reason == "not built at installation: no C++ compiler was found (CXX, c++, g++, clang++)"
    assert len(warnings) == 1
    assert "slower PyTorch path" in warnings[0]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Made where something was built, and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    source = clean_copy(folder / "source")
    (source / "road_kernels" / "_build_info.py").write_text("of another machine")
    code = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with tarfile.open(source / run.stdout.splitlines()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("road_kernels-*"))


def test_the_sources_build_themselves(sdist, pure_wheel, tmp_path):
    """The sdist: all of the C++ is in it, nothing that was built is, and its wheel has the same files."""

    def files(root, folder):
        return {str(path.relative_to(root)) for path in (root / folder).rglob("*.[chpu]*") if path.is_file()}

    for folder in ("csrc", "tests/cpp"):
        assert files(sdist, folder) == files(ROOT, folder) != set()
    assert not list(sdist.rglob("*.so")) and not list(sdist.rglob("_build_info.py"))
    wheel = build_wheel(tmp_path, sdist, PATH=str(tmp_path), CXX="", CC="")
    names, expected = (set(zipfile.ZipFile(w).namelist()) for w in (wheel, pure_wheel))
    assert names == expected


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_sources_are_the_cpp_library_too(sdist, tmp_path):
    """docs/cpp.md begins with this command: CMakeLists.txt names files, tests/cpp among them, that must be there."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # where pip puts cmake
    if (cmake := shutil.which("cmake", path=path)) is None:
        pytest.skip("no cmake")
    run = subprocess.run([cmake, "-S", sdist, "-B", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_asked_for_and_impossible(tmp_path):
    run = pip_wheel(tmp_path, PATH=str(tmp_path), CXX="", ROAD_KERNELS_BUILD="1")
    assert run.returncode != 0
    assert "ROAD_KERNELS_BUILD=1, but no C++ compiler was found" in run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_a_compiler_that_fails_on_the_sources(tmp_path, wanted):
    """Which setup.py cannot know before. No page of errors, unless asked for."""
    compiler = tmp_path / "some-g++"
    probe_only = 'case "$*" in *probe.cpp*|*-v|*-dump*) exec c++ "$@";; esac; yes "error: some" | head -200; exit 1'
    compiler.write_text(f"#!/bin/sh\n{probe_only}\n")
    compiler.chmod(0o755)
    run = pip_wheel(tmp_path, CXX=str(compiler), ROAD_KERNELS_BUILD=wanted)
    said = run.stdout + run.stderr
    if wanted == "1":
        assert run.returncode != 0 and said.count("error: some") >= 200
        return
    assert run.returncode == 0 and len(said) < 500, said
    choice, reason, warnings = use(next(tmp_path.glob("*.whl")), tmp_path)
    assert choice == "python" and len(warnings) == 1
    assert reason.startswith("not built at installation: the build failed (")


@pytest.mark.parametrize("compiler", ["g++-11", "clang++"])  # the default of Ubuntu 22.04 and of CUDA images; another
def test_with_another_compiler(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    wheel = build_wheel(tmp_path, ROAD_KERNELS_BUILD="1", CXX=compiler)
    choice, reason, warnings = use(wheel, tmp_path)
    assert (choice, reason, warnings) == ("cpu", "None", [])


@pytest.mark.skipif(rk.backend_info()["build"] is None, reason="no compiled extension here")
def test_with_a_compiler(tmp_path):
    """The wheel as `make wheel` builds it; then the same one under another torch, and with a damaged library."""
    wheel = build_wheel(tmp_path, ROAD_KERNELS_BUILD="1", ROAD_KERNELS_LOCAL_VERSION="1")
    torch_minor = ".".join(torch.__version__.split(".")[:2])
    assert re.match(rf"road_kernels-{re.escape(rk.__version__)}\+(cpu|cu\d+)torch{torch_minor}-cp", wheel.name)
    # 1.2 MB, of loops for four instruction sets; with debug information it would be several times that.
    assert wheel.stat().st_size < 1_500_000
    choice, reason, warnings = use(wheel, tmp_path)
    assert (choice, reason, warnings) == ("cpu", "None", [])

    installed = tmp_path / "installed"
    build_info = installed / "road_kernels" / "_build_info.py"
    build_info.write_text(build_info.read_text().replace(torch.__version__, "2.9.1"))
    choice, reason, warnings = use(installed, tmp_path)
    assert choice == "python"
    assert reason.startswith(f"the extension was built for torch 2.9.1, but torch {torch.__version__} is installed")
    assert "pip install --no-build-isolation" in reason
    assert len(warnings) == 1

    build_info.write_text(build_info.read_text().replace("2.9.1", torch.__version__))
    library = next((installed / "road_kernels").glob("_C*.so"))
    library.write_bytes(b"not a library")
    choice, reason, warnings = use(installed, tmp_path)
    assert choice == "python"
    assert reason.startswith("the extension does not load (")
    assert len(warnings) == 1
