"""What a type checker needs: annotations of the whole public surface, the marker, the stub. `make lint` runs mypy."""

import ast
import inspect
from pathlib import Path

import pytest

import road_kernels as rk
from road_kernels.ops.extension import EXTENSION

ROOT = Path(__file__).parents[2]


def public_functions():
    found = {}
    for name in rk.__all__:
        thing = getattr(rk, name)
        members = {name: thing}
        if inspect.ismodule(thing):
            members = {f"{name}.{m}": getattr(thing, m) for m in getattr(thing, "__all__", ())}
        elif inspect.isclass(thing):
            ours = [base for base in reversed(thing.__mro__) if base.__module__.startswith("road_kernels")]
            members = {f"{name}.{m}": v for base in ours for m, v in vars(base).items() if not m.startswith("_")}
            members[f"{name}.__init__"] = thing.__init__
        for full, member in members.items():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(member):
                found[full] = inspect.unwrap(member)
    del found["BankLayer.__init__"]  # AdapterBank.layer makes them
    return found


PUBLIC = public_functions()


def test_the_list_is_whole():
    assert {"rotate", "road_merge", "AdapterBank.load", "AdapterBank.names", "Adapter.from_peft"} <= PUBLIC.keys()
    assert len(PUBLIC) > 40


@pytest.mark.parametrize("name", PUBLIC)
def test_annotated(name):
    signature = inspect.signature(PUBLIC[name])
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    assert not bare
    assert signature.return_annotation is not signature.empty or name.endswith(("__init__", "__call__"))


def test_the_stub_has_what_the_extension_has():
    stub = ast.parse((ROOT / "road_kernels" / "_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    if EXTENSION is None:
        pytest.skip("no compiled extension here")
    assert declared == {name for name in dir(EXTENSION) if not name.startswith("__")}


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "road_kernels" / "py.typed").read_text() == ""
