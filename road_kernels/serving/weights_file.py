"""Reading a safetensors file that may be damaged or hostile: what it holds is checked before its data is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

# 130 bytes a tensor: 120,000 tensors. The library's own limit, 100 MB, takes 1 GB as Python objects.
MAX_HEADER = 16 << 20


def read(path: Path, wanted: Callable[[str], bool], max_bytes: int) -> dict[str, Tensor]:
    """The tensors whose names are ``wanted``, of at most ``max_bytes`` together; no others are read.

    Read into memory of our own: a mapped file would crash the process if it were overwritten later.

    Raises:
        ValueError: not a safetensors file, damaged or cut short, or more data than max_bytes.
    """
    try:
        import safetensors
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading a checkpoint needs the package safetensors: pip install safetensors"
        ) from error
    with path.open("rb") as file:
        header, data = _header(file, path)
        chosen = {name: entry for name, entry in header.items() if wanted(name)}
        size = sum(end - begin for begin, end in (entry["data_offsets"] for entry in chosen.values()))
        if size > max_bytes:
            raise ValueError(f"{path} holds {size} bytes of RoAd parameters, more than max_bytes = {max_bytes}")
        part, chunks = 0, []
        for name, entry in chosen.items():
            begin, end = entry["data_offsets"]
            file.seek(data + begin)
            chunks.append(file.read(end - begin))
            chosen[name] = {**entry, "data_offsets": [part, part := part + end - begin]}
    text = json.dumps(chosen).encode()
    try:  # the library checks dtypes, and shapes against sizes
        return load(b"".join((len(text).to_bytes(8, "little"), text, *chunks)))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(name -> dtype, shape, data_offsets; in the order of the data, where the data begins)."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise _damaged(path, f"{size} bytes, with a header of {length}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        header.pop("__metadata__", None)
        spans = {name: _span(name, entry) for name, entry in header.items()}
    except (ValueError, RecursionError) as error:  # ValueError: of json and of utf-8 alike
        raise _damaged(path, error) from None
    order = sorted(header, key=spans.__getitem__)
    end = 0
    for name in order:
        if spans[name][0] != end:
            raise _damaged(path, f"the data of {name!r} begins at {spans[name][0]} and not at {end}")
        end = spans[name][1]
    if end != size - 8 - length:
        raise _damaged(path, f"{end} bytes of data are named, and {size - 8 - length} there")
    return {name: header[name] for name in order}, 8 + length


def _span(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise ValueError(f"{name!r} has no data_offsets")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise ValueError(f"{name!r} has the data_offsets {offsets}")
    return begin, end


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the header has a name twice")
    return found


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged, cut short or not a safetensors file: {why}")
