"""Matching the layers of an adapter to those of a bank."""

from collections.abc import Collection, Iterable

SHOWN = 3


class LayerNames:
    """The names of a bank's layers, found by names with more or fewer parents in front.

    A layer trained as "model.layers.0.q_proj" is often served as "layers.0.q_proj", or the other way round.
    """

    def __init__(self, layers: Iterable[str]):
        self.layers = frozenset(layers)
        self._longer: dict[str, list[str]] = {}  # every proper end of a layer's name -> the layers that end so
        for layer in sorted(self.layers):
            for end in _ends(layer):
                self._longer.setdefault(end, []).append(layer)

    def match(self, names: Collection[str], partial: bool) -> dict[str, str]:
        """Bank layer -> name. ValueError unless each name has one layer and, if not ``partial``, each layer a name."""
        found: dict[str, str] = {}
        unknown = []
        for name in names:
            layer = self._find(name)
            if layer is None:
                unknown.append(name)
            elif layer in found:
                raise ValueError(f"layers {found[layer]!r} and {name!r} of the adapter are both {layer!r} of the bank")
            else:
                found[layer] = name
        if unknown:
            raise ValueError(f"the adapter has layers that the bank has not: {some(unknown)}")
        if not partial and len(found) < len(self.layers):
            raise ValueError(
                f"the adapter has no parameters for {some(self.layers - found.keys())} of the bank "
                "(partial=True leaves such layers as they are)"
            )
        return found

    def _find(self, name: str) -> str | None:
        if name in self.layers:
            return name
        candidates = self._longer.get(name, []) + [end for end in _ends(name) if end in self.layers]
        if len(candidates) > 1:
            raise ValueError(f"layer {name!r} of the adapter may be any of {some(candidates)} of the bank")
        return candidates[0] if candidates else None


def _ends(name: str) -> list[str]:
    """ "a.b.c" -> ["b.c", "c"]"""
    parts = name.split(".")
    return [".".join(parts[k:]) for k in range(1, len(parts))]


def some(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
