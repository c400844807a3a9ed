"""What MkDocs does beside rendering docs/: the files at the root become pages, and links that leave docs/ become text.

README.md is the first page. Pages of the navigation that are not written are left out.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def on_config(config):
    for group in config.nav:
        for title, pages in group.items():
            there = [page for page in pages if page in PAGES.values() or (ROOT / "docs" / page).exists()]
            group[title] = there
    return config


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_relative((ROOT / source).read_text(), PurePosixPath("."))))
    for image in (ROOT / "benchmarks" / "results").rglob("*.png"):
        name = f"results/{image.parent.name}/{image.name}"
        files.append(File.generated(config, name, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri in PAGES.values():
        return markdown
    return _relative(markdown, PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent)


def _relative(text: str, folder: PurePosixPath) -> str:
    """Links of a file in ``folder`` of the repository, as links of a page of the site's root or of the same folder."""

    def target(path: str) -> str | None:
        parts = []
        for part in (folder / path).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        inside = "/".join(parts)
        if inside in PAGES:
            return PAGES[inside]
        if inside.startswith("benchmarks/results/") and inside.endswith(".png"):
            return inside.removeprefix("benchmarks/")
        return inside.removeprefix("docs/") if inside.startswith("docs/") else None

    def link(found: re.Match) -> str:
        bang, label, path, anchor = found["bang"], found["label"], found["path"], found["anchor"] or ""
        if "://" in path:
            return found[0]
        new = target(path)
        return f"{bang}[{label}]({new}{anchor})" if new else label

    def image(found: re.Match) -> str:
        return f'src="{target(found[1]) or found[1]}"'

    text = re.sub(r"(?P<bang>!?)\[(?P<label>[^\]]*)\]\((?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)", link, text)
    return re.sub(r'src="([^":]+)"', image, text)
