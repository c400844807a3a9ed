"""The site of `make docs`: everything public is in its reference, and what its hooks make of links and docstrings."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import road_kernels as rk

ROOT = Path(__file__).parents[2]


def tool(name: str, needs: str):
    pytest.importorskip(needs, reason="make docs installs it")
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_all_of_the_api():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    pages = pages.replace("functional.rotate.rotate\n", "rotate\n")  # rotate is also a module, which would be taken
    named = re.findall(r"^::: road_kernels\.(\S+)$", pages, re.MULTILINE)
    assert len(named) == len(set(named))
    public = {name for name in rk.__all__ if not inspect.ismodule(getattr(rk, name)) and name != "__version__"}
    public |= {f"related_adapters.{name}" for name in rk.neighbours.__all__}
    assert public == {name for name in named if not name.startswith(("integrations.", "distributed"))}


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in text, page.name


def test_links_of_the_site():
    hooks = tool("docs_hooks", "mkdocs")
    text = "[a](../SECURITY.md#elsewhere) [b](../csrc/cuda/tuning.h) [c](serving.md) [d](https://e.f)"
    made = hooks._relative(text, hooks.PurePosixPath("docs"))
    assert made == "[a](security.md#elsewhere) b [c](serving.md) [d](https://e.f)"
    assert (
        hooks._relative("![g](../benchmarks/results/h/i.png)", hooks.PurePosixPath("docs")) == "![g](results/h/i.png)"
    )
    root = '[a](docs/install.md) <img src="benchmarks/results/h/i.png" width="1">'
    assert hooks._relative(root, hooks.PurePosixPath(".")) == '[a](install.md) <img src="results/h/i.png" width="1">'


def test_docstrings_of_the_site():
    api = tool("docs_api", "griffe")
    made = api.as_markdown(inspect.getdoc(rk.road_apply_batched))
    assert re.search(r"^\*\*Args\*\*\n\n- `theta`, `alpha`: \[A, P\]", made, re.MULTILINE)
    assert "\n**Raises**\n" in made and "Args:" not in made
    for name in rk.__all__:  # no word is lost
        text = inspect.getdoc(getattr(rk, name)) or ""
        words = re.findall(r"\w+", text)
        assert re.findall(r"\w+", api.as_markdown(text)) == words, name
