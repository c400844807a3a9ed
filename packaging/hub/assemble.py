"""Assembles the kernel for the Hugging Face Hub: python packaging/hub/assemble.py [FOLDER].

FOLDER (build/hub) gets what `kernel-builder` takes (build.toml, flake.nix, torch-ext/), and build/, the variants that
it would make of it and that `kernels` loads: a kernel without compiled code is the same files for every backend.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAME = "road_kernels"
PARTS = ("_version.py", "ops", "backends", "triton", "distributed", "functional")
OWN = {"init.py": "__init__.py", "layers.py": "layers.py", "peft_linear.py": "peft_linear.py"}
BACKENDS = {"cpu": {"type": "cpu"}, "cuda": {"type": "cuda"}}
# Files that kernels before 0.10 look for, in a folder of the kernel's name.
FORWARDING = '''"""For older versions of `kernels`, which import this folder."""

import importlib.util
import sys
from pathlib import Path


def _import(path: Path):
    name = f"{__name__}_flat"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


globals().update(vars(_import(Path(__file__).parents[1] / "__init__.py")))
'''


def copy_package(target: Path) -> str:
    """The Python files of the kernel; returns the hash of what they are."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyi")
    target.mkdir(parents=True)
    for part in PARTS:
        path = ROOT / NAME / part
        if path.is_dir():
            shutil.copytree(path, target / part, ignore=ignored)
        else:
            shutil.copy(path, target)
    shutil.copytree(ROOT / "python_fallback", target / "python_fallback", ignore=ignored)
    for source, name in OWN.items():
        shutil.copy(HERE / source, target / name)
    reason = "the kernel of the Hub has no compiled ones: pip install road_kernels"
    text = f'"""Written by assemble.py."""\n\nTORCH_VERSION = None\nREASON = {reason!r}\nWITHOUT = {{}}\n'
    (target / "_build_info.py").write_text(text)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:7]
    give_namespace(target / "ops" / "schemas.py", f"{NAME}_{digest}")
    return digest


def give_namespace(schemas: Path, namespace: str) -> None:
    """Of the ops: one of its own for every version, since several are loaded in one process, and the package too."""
    text, count = re.subn(f'^NAMESPACE = "{NAME}"$', f'NAMESPACE = "{namespace}"', schemas.read_text(), flags=re.M)
    if count != 1:
        raise SystemExit(f"{schemas} must have one line NAMESPACE = {NAME!r}, got {count}")
    schemas.write_text(text)


def add_variant(package: Path, folder: Path, backend: str, digest: str) -> None:
    target = folder / f"torch-{backend}"
    shutil.copytree(package, target)
    (target / NAME).mkdir()
    (target / NAME / "__init__.py").write_text(FORWARDING)
    hashes = {
        str(path.relative_to(target)): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }
    metadata = {
        "name": "road-kernels",
        "id": f"_{NAME}_{backend}_{digest}",
        "version": 0,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": BACKENDS[backend],
        "digest": {"algorithm": "sha256", "files": hashes},
    }
    (target / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def assemble(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "torch-ext" / NAME
    digest = copy_package(package)
    for name in ("build.toml", "flake.nix", "README.md"):
        shutil.copy(HERE / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    for backend in BACKENDS:
        add_variant(package, folder / "build", backend, digest)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "hub")
    print(assemble(parser.parse_args().folder))


if __name__ == "__main__":
    main()
