"""The rooms of benchmarks/ point one way: programs on top of report and baselines, these on the harness."""

import ast
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What a module of each room may import beside its own room. "": the programs, which import no other program.
ROOMS = {
    "harness": set(),
    "baselines": {"harness"},
    "report": {"harness.record"},
    "small": {"harness", "baselines", "report", ""},
    "": {"harness", "baselines", "report", "fused_cases", "gpu_cases", "gpu_batched_cases", "gpu_fused_cases"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(BENCHMARKS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in BENCHMARKS.rglob("*.py")}


def imports(module: str, source: str, is_package: bool = False) -> set[str]:
    """The modules of benchmarks that a source imports, also inside functions; without the leading "benchmarks."."""
    full = f"benchmarks.{module}" if module else "benchmarks"
    package = full if is_package else full.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("benchmarks.") for name in found if name.startswith("benchmarks.")} & MODULES.keys()


GRAPH = {name: imports(name, path.read_text(), path.name == "__init__.py") for name, path in MODULES.items()}


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in ROOMS else ""


def allowed(module: str, imported: str) -> bool:
    """Of a room that may be imported, or that has a module which may be, the package too."""
    room, other = room_of(module), room_of(imported)
    if room and room == other:
        return True
    return bool({other, imported} & ROOMS[room]) or any(name.startswith(f"{imported}.") for name in ROOMS[room])


def violations(graph: dict[str, set[str]]) -> list[str]:
    return [f"{module} imports {name}" for module in graph for name in graph[module] if not allowed(module, name)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first circle of imports, empty if there is none."""
    done, path = set(), []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        found = next(filter(None, map(visit, sorted(graph[module]))), [])
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def test_rooms_point_one_way():
    assert {room_of(module) for module in MODULES} == set(ROOMS)
    assert {"harness.measure", "harness.record", "baselines.formulas"} <= GRAPH["dispatch"] | GRAPH["gpu_targets"]
    assert not violations(GRAPH)


def test_no_circles():
    assert not circle(GRAPH)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.timing", "from ..baselines import formulas"),
        ("harness.timing", "from ..report.tables import markdown"),
        ("harness.timing", "import benchmarks.layer"),
        ("baselines.models", "def f():\n    from ..report import tables"),
        ("baselines.models", "from .. import layer"),
        ("baselines.models", "import benchmarks.report"),
        ("report.tables", "from ..harness.measure import measure"),
        ("report.tables", "from ..harness import timing"),
        ("report.tables", "from benchmarks.single_op import BASE"),
        ("layer", "from .single_op import star"),
        ("layer", "from . import single_op"),
        ("layer", "from .small import cases"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert violations({module: imports(module, source)})


def test_a_circle_is_seen():
    graph = {"report.figure": {"report.tables"}, "report.plots": {"report.figure"}, "report.tables": set()}
    assert not circle(graph)
    graph["report.tables"] = imports("report.tables", "def f():\n    from .plots import overhead")
    assert circle(graph) == ["report.figure", "report.tables", "report.plots", "report.figure"]
