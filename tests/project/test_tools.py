"""tools/: the matrix, and the check of wheels, without building anything."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for dataclasses
    spec.loader.exec_module(module)
    return module


matrix, audit_wheel = tool("matrix"), tool("audit_wheel")


def test_the_matrix_has_what_is_supported():
    cells = {cell.name: cell for cell in matrix.CELLS}
    assert len(cells) == len(matrix.CELLS)
    pyproject = (ROOT / "pyproject.toml").read_text()
    oldest = cells["torch-oldest"].torch.removesuffix(".0").replace("==", ">=")
    assert f'dependencies = ["{oldest}"]' in pyproject
    assert f'peft = ["{cells["peft-oldest"].peft.removesuffix(".0").replace("==", ">=")}"]' in pyproject
    pythons = sorted({cell.python for cell in matrix.CELLS}, key=lambda version: int(version.split(".")[1]))
    assert pythons == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)
    assert f'requires-python = ">={pythons[0]}"' in pyproject
    for cell in matrix.CELLS:
        assert all((ROOT / path).exists() for path in cell.tests), cell.name


def test_the_list():
    command = [sys.executable, str(ROOT / "tools" / "matrix.py"), "--list", "clang"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("clang ") and "clang++" in said and said.count("\n") == 1


def test_what_cannot_be_had_is_not_run(tmp_path):
    assert matrix.run_cell(matrix.Cell("a", python="9.9"), tmp_path) == ("not run", "no Python 9.9 here")
    assert matrix.run_cell(matrix.Cell("b", compiler="g++-0"), tmp_path) == ("not run", "no g++-0 here")


def test_what_fails_is_shown_and_fails_the_program(tmp_path, monkeypatch, capsys):
    def install(run):
        (run.folder / "source").mkdir()
        run.call(sys.executable, "-c", "print('the last line'); raise SystemExit(3)")

    monkeypatch.setattr(matrix.Run, "install", install)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "clang", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        matrix.main()
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "clang          failed" in said and "the last line" in said and "0 cells passed, 1 failed, 0 not run" in said
    assert "the last line" in (tmp_path / "clang" / "log.txt").read_text()


def test_the_environment_of_the_caller_is_not_that_of_a_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    (tmp_path / "source").mkdir()
    run = matrix.Run(matrix.Cell("a"), tmp_path)
    code = "import os; print(os.environ.get('PYTHONPATH'), os.environ['CXX'])"
    assert run.call(sys.executable, "-c", code, CXX="some").split() == ["None", "some"]


def test_a_wheel_without_an_extension_is_passed_on(tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/__init__.py", "")
    monkeypatch.setattr(sys, "argv", ["audit_wheel.py", str(wheel), "--out", str(tmp_path / "dist")])
    audit_wheel.main()
    assert (tmp_path / "dist" / wheel.name).exists() and not wheel.exists()
    assert "nothing for auditwheel" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_glibc(monkeypatch):
    monkeypatch.setattr("os.confstr", lambda name: "glibc 2.28")
    assert audit_wheel.glibc() == (2, 28)
