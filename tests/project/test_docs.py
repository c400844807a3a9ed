"""The Python blocks of README.md and docs/ run as printed, their links resolve, and the serving examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The blocks of vllm.md run in its own environment: tests/integrations/vllm/test_docs.py.
WITH_BLOCKS = [page for page in PAGES if page.name != "vllm.md"]
LINKED = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"))]


def blocks() -> list:
    found = []
    for page in WITH_BLOCKS:
        text = page.read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start(1))
            found.append(pytest.param(page, line, match[1], id=f"{page.name}:{line + 1}"))
    return found


@pytest.fixture
def no_process_group():
    """Blocks of docs/distributed.md make one, each for itself."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize(("page", "line", "code"), blocks())
def test_blocks_run(page, line, code):
    exec(compile("\n" * line + code, page.name, "exec"), {"__name__": page.stem})


def test_every_block_is_found():
    starts = sum(page.read_text().count("```python") for page in WITH_BLOCKS)
    assert len(blocks()) == starts >= 30


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert all(len(line) <= 120 or line.startswith(("|", "<", "NVIDIA", "On an ")) for line in lines)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)", page.read_text()):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def test_serving_loop(tmp_path):
    pytest.importorskip("safetensors", reason="the example writes and reads checkpoints")
    script = ROOT / "examples" / "serving_loop.py"
    run = subprocess.run([sys.executable, script, "--quick"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "every request equals itself run alone with its adapter merged" in run.stdout
    assert re.search(r"[1-9]\d* hits, [1-9]\d* loads, [1-9]\d* evictions", run.stdout)
    assert re.search(r"1 refused: .*adapter_model.safetensors is damaged", run.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_live_updates(tmp_path):
    script = ROOT / "examples" / "live_updates.py"
    command = [sys.executable, script, "--quick"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.search(r"20 updates between \d+ steps", run.stdout)
    assert re.search(r"pause per update: \d+\.\d\d ms in the median", run.stdout)
    assert "the same bit for bit, from the first round to the last" in run.stdout
    assert "the policy served is the policy trained" in run.stdout
    assert not list(tmp_path.iterdir())
