"""Docstrings for MkDocs: Args, Returns and Raises as Markdown, with their free sentences and their pairs of names."""

import re
from textwrap import dedent

from griffe import Extension


class Docstrings(Extension):
    """For mkdocstrings' option `extensions`."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    parts, lines = [], dedent(text).splitlines()
    while lines:
        line = lines.pop(0)
        if line not in ("Args:", "Returns:", "Raises:"):
            parts.append(line)
            continue
        body = []
        while lines and (not lines[0].strip() or lines[0].startswith("    ")):
            body.append(lines.pop(0))
        parts += ["", f"**{line[:-1]}**", "", *_items(dedent("\n".join(body)).splitlines()), ""]
    return "\n".join(parts)


def _items(lines: list[str]) -> list[str]:
    """`name: text` as an item of a list, whatever else as a paragraph."""
    found = []
    for line in lines:
        item = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", line)
        if item:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            found.append(f"- {names}: {item[2]}")
        elif line.startswith("    "):
            found.append(f"  {line.strip()}")
        else:
            found += [line] if found and not found[-1].startswith(("- ", "  ")) else ["", line]
    return found
