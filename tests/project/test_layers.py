"""Layers point one way, in C++ and in Python, and what only one file should know stands in no other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"

# The folders that each folder of csrc may include. Only the binding includes torch.
INCLUDES = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "binding": {"core", "cpu", "cuda", "binding"},
}
# The packages that each package of road_kernels may import. "": the root, which re-exports the public API.
BELOW_FUNCTIONAL = {"python_fallback", "ops", "triton", "backends"}
IMPORTS = {
    "ops": {"python_fallback"},
    "triton": {"python_fallback", "ops"},
    "backends": {"python_fallback", "ops", "triton"},
    "distributed": {"ops", "backends"},
    "functional": BELOW_FUNCTIONAL - {"triton"} | {"distributed"},
    "serving": BELOW_FUNCTIONAL - {"triton"} | {"functional"},
    "": BELOW_FUNCTIONAL - {"triton"} | {"functional", "serving"},
    "integrations": BELOW_FUNCTIONAL - {"triton"} | {"distributed", "functional", "serving", ""},
}


def cpp_sources(folder: str = "") -> list[Path]:
    return [path for path in (CSRC / folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("folder", INCLUDES)
def test_cpp_includes(folder):
    for path in cpp_sources(folder):
        for kind, name in re.findall(r'#include ([<"])([^>"]+)', path.read_text()):
            if kind == '"' and name != "cuda_shim.h":
                assert name.split("/")[0] in INCLUDES[folder], f"{path} includes {name}"
                assert (CSRC / name).is_file(), f"{path} includes {name}: name files from csrc, the include root"
            elif folder != "binding":
                assert not name.startswith(("torch/", "ATen/", "c10/", "pybind11/", "Python.h")), f"{path}: {name}"


def test_pairs_and_packing_are_worked_out_in_one_file():
    for path in cpp_sources():
        if path.name != "pairing.h":
            found = re.search(r"(pair|feature\w*) *[/%] *(half|g|group_size)\b", path.read_text())
            assert not found, f"{path}: {found[0]} is for core/pairing.h"


# By setup.py.
GENERATED = {"road_kernels._C", "road_kernels._build_info"}


def python_imports(path: Path, module: str) -> set[str]:
    """The modules of road_kernels that a file imports, also inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:  # a module of the package, or anything in it
                name = f"{source}.{alias.name}"
                found.add(name if name in MODULES or name in GENERATED else source)
    return (found & MODULES.keys()) - GENERATED


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "road_kernels").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for path in (ROOT / "python_fallback").rglob("*.py"):
        name = f"road_kernels.python_fallback.{path.stem}"
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()
GRAPH = {name: python_imports(path, name) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in {*IMPORTS, "python_fallback"} else ""


def test_python_packages():
    assert len(GRAPH) > 50
    assert "road_kernels.ops.schemas" in GRAPH["road_kernels.backends.python"]  # relative imports are understood
    for module, imported in GRAPH.items():
        package = package_of(module)
        allowed = IMPORTS.get(package, set()) | {package}
        for name in imported:
            assert package_of(name) in allowed, f"{module} imports {name}"


def test_triton_kernels_know_nothing_of_the_ops():
    for module, imported in GRAPH.items():
        if module.startswith("road_kernels.triton.kernels"):
            for name in imported:
                assert name.startswith("road_kernels.triton.kernels") or name == "road_kernels.triton.launch", module


def test_no_circles():
    """A package counts as the modules that its __init__ imports, but for those inside of it, which Python allows."""
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module in done:
            return
        path.append(module)
        for name in GRAPH[module]:
            if not path[-1].startswith(f"{name}."):
                visit(name)
        path.pop()
        done.add(module)

    for module in GRAPH:
        visit(module)


def test_the_fallback_imports_nothing_of_ours():
    for path in (ROOT / "python_fallback").glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1] in ("torch", "math") or words[1].startswith((".", "torch")), f"{path.name}: {line}"
