"""Matching the layers of an adapter to those of a bank."""

from collections.abc import Collection, Iterable

SHOWN = 3
# Modules that torch puts around another: torch.compile of a block, activation checkpointing, FSDP.
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def plain_name(name: str) -> str:
    """The name of a layer without torch's wrappers: "layers.0._orig_mod.q_proj" is "layers.0.q_proj"."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class LayerNames:
    """The names of a bank's layers, found by names with more or fewer parents in front.

    A layer trained as "model.layers.0.q_proj" is often served as "layers.0.q_proj", or the other way round, and either
    may have been in a compiled block. Raises ValueError if two layers differ by torch's wrappers only.
    """

    def __init__(self, layers: Iterable[str]):
        self.layers: dict[str, str] = {}  # plain name -> the bank's own
        for layer in sorted(layers):
            if (other := self.layers.setdefault(plain_name(layer), layer)) != layer:
                raise ValueError(f"layers {other!r} and {layer!r} differ by a wrapper of torch's only")
        self._longer: dict[str, list[str]] = {}  # every proper end of a layer's plain name -> the layers that end so
        for layer in self.layers:
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
                f"the adapter has no parameters for {some(set(self.layers.values()) - found.keys())} of the bank "
                "(partial=True leaves such layers as they are)"
            )
        return found

    def _find(self, name: str) -> str | None:
        plain = plain_name(name)
        if plain in self.layers:
            return self.layers[plain]
        candidates = self._longer.get(plain, []) + [end for end in _ends(plain) if end in self.layers]
        if len(candidates) > 1:
            found = [self.layers[candidate] for candidate in candidates]
            raise ValueError(f"layer {name!r} of the adapter may be any of {some(found)} of the bank")
        return self.layers[candidates[0]] if candidates else None


def _ends(name: str) -> list[str]:
    """ "a.b.c" -> ["b.c", "c"]"""
    parts = name.split(".")
    return [".".join(parts[k:]) for k in range(1, len(parts))]


def some(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
