"""Builds and tests the package in other surroundings: python tools/matrix.py [CELL ...] [--list].

A cell is a Python, a PyTorch, a compiler and a PEFT, in an environment and a copy of the sources of its own, under
build/matrix. What cannot be had on this machine is not run, and said; what fails, fails the program.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = "{}.{}".format(*sys.version_info[:2])
TORCH = os.environ.get("TORCH") or "torch==2.13.0"
# Values, gradients, compiled calls and the bank, on every backend of the build; PEFT, where the cell is about it.
SMOKE = [
    "tests/ops/test_forward.py",
    "tests/ops/test_backward.py",
    "tests/ops/test_compile.py",
    "tests/ops/test_calls.py",
]
SMOKE += ["tests/serving", "tests/backends/test_choice.py", "tests/project/test_typing.py"]
PEFT = ["tests/integrations"]


@dataclass(frozen=True)
class Cell:
    name: str
    python: str = HERE
    torch: str = TORCH
    compiler: str = ""  # "": the default one; "none": nothing is compiled
    peft: str = "peft"  # what pip is asked for
    tests: tuple[str, ...] = tuple(SMOKE)


CELLS = (
    Cell("python3.10", python="3.10"),
    Cell("python3.11", python="3.11"),
    Cell("python3.12", python="3.12"),
    Cell("python3.13", python="3.13"),
    Cell("python3.14", python="3.14", torch="torch"),
    Cell("torch-oldest", python="3.12", torch="torch==2.11.0"),
    Cell("torch-newest", python="3.13", torch="torch"),
    Cell("g++-11", compiler="g++-11"),
    Cell("clang", compiler="clang++"),
    Cell("no-compiler", compiler="none"),
    Cell("peft-oldest", peft="peft==0.18.0", tests=tuple(PEFT)),
    Cell("peft-newest", peft="peft", tests=tuple(PEFT)),
)


class NotRun(Exception):
    """Why a cell cannot be had on this machine."""


def find_python(version: str) -> str:
    """An interpreter that can make environments: on PATH, or of pyenv."""
    wanted = [sys.executable] if version == HERE else []
    wanted += [shutil.which(f"python{version}") or ""]
    for root in (os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv"), "/opt/pyenv"):
        wanted += sorted(glob(f"{root}/versions/{version}.*/bin/python"), reverse=True)
    for path in filter(None, wanted):
        check = "import sys, venv, ensurepip; assert sys.version_info[:2] == ({}, {})".format(*version.split("."))
        if subprocess.run([path, "-c", check], capture_output=True).returncode == 0:
            return path
    raise NotRun(f"no Python {version} here")


class Run:
    """One cell, in ``folder``."""

    def __init__(self, cell: Cell, folder: Path):
        self.cell, self.folder = cell, folder
        self.python = str(folder / "venv" / "bin" / "python")
        self.log = (folder / "log.txt").open("w")

    def call(self, *command: str, said: str = "", **environment: str) -> str:
        """Standard output; raises RuntimeError with its end. ``said``: what failing means if the cell cannot be had."""
        hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "MAKEFLAGS")
        kept = {k: v for k, v in os.environ.items() if k not in hidden}
        done = subprocess.run(
            command,
            cwd=self.folder / "source",
            env=kept | environment,
            capture_output=True,
            text=True,
            errors="replace",
        )
        print("$", *command, done.stdout, done.stderr, sep="\n", file=self.log, flush=True)
        if done.returncode == 0:
            return done.stdout
        if said:
            raise NotRun(said)
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-25:]))

    def pip(self, *arguments: str, **how: str) -> None:
        self.call(self.python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *arguments, **how)

    def copy_sources(self) -> None:
        source = self.folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name)

    def install(self) -> None:
        cell = self.cell
        if cell.compiler not in ("", "none") and not shutil.which(cell.compiler):
            raise NotRun(f"no {cell.compiler} here")
        interpreter = find_python(cell.python)
        self.copy_sources()
        if not Path(self.python).exists():
            self.call(interpreter, "-m", "venv", str(self.folder / "venv"))
        pins = self.folder / "constraints.txt"  # but for what the cell chooses
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("peft==")) + "\n")
        self.pip(cell.torch, said=f"pip finds no {cell.torch} for Python {cell.python}")
        needed = ["ninja", "setuptools>=77", "numpy", "pytest>=8", "pytest-xdist", "hypothesis", "safetensors>=0.4"]
        self.pip("-c", str(pins), *needed, *([cell.peft, "transformers>=5"] if cell.tests == tuple(PEFT) else []))
        build = {"ROAD_KERNELS_BUILD": "0" if cell.compiler == "none" else "1", "ROAD_KERNELS_CUDA": "0"}
        if cell.compiler not in ("", "none"):
            build["CXX"] = cell.compiler
        self.pip("--no-build-isolation", "--no-deps", "-e", ".", **build)

    def what(self) -> str:
        """The versions, and what was compiled with what."""
        code = (
            "import platform, torch, road_kernels as rk, importlib.metadata as m\n"
            "build = rk.backend_info()['build']\n"
            "names = {d.name.lower() for d in m.distributions()}\n"
            "peft = ', PEFT ' + m.version('peft') if 'peft' in names else ''\n"
            "how = 'compiled by ' + build['compiler'] if build else 'nothing compiled'\n"
            "print(f'Python {platform.python_version()}, PyTorch {torch.__version__}{peft}, {how}')"
        )
        return self.call(self.python, "-W", "ignore", "-c", code).strip()

    def test(self) -> str:
        backends = ["--backend=python", "--backend=none"] + ["--backend=cpu"] * (self.cell.compiler != "none")
        command = [self.python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow", *backends]
        command += ["-W", "ignore:road_kernels runs on the slower PyTorch path"]  # an error in other runs
        said = self.call(*command, *self.cell.tests, OMP_NUM_THREADS="1")
        return re.sub(r" in [\d.:() ]+s.*", "", said.strip().splitlines()[-1])


def run_cell(cell: Cell, root: Path) -> tuple[str, str]:
    """("ok", "not run" or "failed", what is to be said)."""
    folder = root / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(cell, folder)
    try:
        run.install()
        return "ok", f"{run.what()}: {run.test()}"
    except NotRun as reason:
        return "not run", str(reason)
    except RuntimeError as error:
        return "failed", f"{error}\nsee {run.log.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", choices=[[], *(cell.name for cell in CELLS)])
    parser.add_argument("--list", action="store_true", help="the cells, and what each asks for")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "matrix", help="of the environments, 1 to 6 GB each"
    )
    options = parser.parse_args()
    chosen = [cell for cell in CELLS if not options.cells or cell.name in options.cells]
    if options.list:
        for cell in chosen:
            compiler = cell.compiler or "the default compiler"
            print(f"{cell.name:14} Python {cell.python}, {cell.torch}, {cell.peft}, {compiler}")
        return
    results = []
    for cell in chosen:
        start = time.monotonic()
        status, said = run_cell(cell, options.folder.resolve())
        results.append(status)
        print(f"{cell.name:14} {status:8} {time.monotonic() - start:4.0f} s  {said}", flush=True)
    counts = [results.count(status) for status in ("ok", "failed", "not run")]
    print("{} cells passed, {} failed, {} not run".format(*counts))
    sys.exit(1 if "failed" in results else 0)


if __name__ == "__main__":
    main()
