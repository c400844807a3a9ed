"""Adapter: the parameters of one trained RoAd adapter, for all of its layers."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..ops import checks
from . import adapter_algebra, checkpoint


@dataclass(frozen=True, eq=False)
class Adapter:
    """The parameters of one adapter, checked on construction.

    Args:
        layers: layer name -> (theta, alpha), each [P] and packed as ``variant`` says (see road_apply), any device,
            float16, bfloat16, float32 or float64.
        variant: "road_1", "road_2" or "road_4", the same for all layers.
        group_size: the g that it was trained with; with another g the same parameters would mean another adapter.

    An adapter can be copied, deep-copied, pickled and sent to other processes; ``torch.load`` reads one that
    ``torch.save`` wrote, with its default ``weights_only=True`` too once road_kernels is imported. ``copy.copy`` shares
    the tensors, everything else copies them. Whatever is unpickled is checked again.

    Raises:
        TypeError, ValueError: naming the layer, what it got and what it needs.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    variant: str = "road_1"
    group_size: int = 64

    def __post_init__(self):
        checks.check_variant(self.variant)
        check_layers(self.layers)
        for name, pair in self.layers.items():
            try:
                checks.check_packed(*pair, self.variant, self.group_size)
                if pair[0].dim() != 1:
                    raise ValueError(f"theta must be [P], one adapter, got {list(pair[0].shape)}")
                if pair[0].is_meta:
                    raise ValueError("theta and alpha are on the meta device, without values")
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name!r}: {error}") from None
        # A copy: what was checked cannot change.
        object.__setattr__(self, "layers", MappingProxyType({name: tuple(pair) for name, pair in self.layers.items()}))

    def __reduce__(self):
        # By the constructor: a mapping proxy cannot be pickled, and what comes from a file is checked.
        return type(self), (dict(self.layers), self.variant, self.group_size)

    @property
    def widths(self) -> dict[str, int]:
        """Layer name -> D, the output features of the layer that the adapter was made for."""
        return {name: checks.packed_dim(self.variant, len(theta)) for name, (theta, _) in self.layers.items()}

    @classmethod
    def from_peft(
        cls, folder: str | os.PathLike, *, ignore: Collection[str] = (), max_bytes: int = 1 << 30
    ) -> "Adapter":
        """Reads the folder that PEFT's save_pretrained writes for a RoAd adapter; needs the package safetensors.

        Args:
            folder: holds adapter_config.json and adapter_model.safetensors. The layers get the names of the modules
                in the model that was trained, such as "model.layers.0.self_attn.q_proj", without what torch.compile,
                activation checkpointing or FSDP of single blocks put in between ("layers.0._orig_mod.q_proj").
            ignore: modules whose other weights the checkpoint may hold (``modules_to_save``) because they are served
                separately, by name or by the end of it ("classifier"). Other weights are refused: without them the
                adapter would not do what it was trained for.
            max_bytes: of RoAd's parameters. Names and sizes are checked before any of them is read. road_4 in float32
                for all linear layers of a model of 405B parameters: 0.3 GB.

        Raises:
            FileNotFoundError: the folder or one of the two files is missing. Pickled weights (.bin) are not read.
            ValueError: the files are damaged, too large, or not those of a RoAd adapter.
            TypeError: weights of another dtype.
        """
        layers, variant, group_size = checkpoint.read_peft(folder, ignore, max_bytes)
        try:
            return cls(layers, variant, group_size)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{os.fspath(folder)}: {error}") from None

    def save(self, folder: str | os.PathLike, *, base_model: str | None = None) -> None:
        """Writes the adapter as PEFT does: adapter_config.json and adapter_model.safetensors; needs safetensors.

        ``Adapter.from_peft`` and ``AdapterBank.load`` read the same bits back, and so does PEFT's
        ``PeftModel.from_pretrained(model, folder)``, as long as its parameters are as wide (they are float32 on a model
        of float32 or less). The names of the layers must be those of the model's modules.

        Args:
            folder: created if need be. The two files are replaced one after the other, each in one step.
            base_model: PEFT's ``base_model_name_or_path``, for those who load the model by it.

        Raises:
            ValueError: two layers have one name in a checkpoint. OSError: the folder cannot be written.
        """
        checkpoint.write_peft(folder, self.layers, self.variant, self.group_size, base_model)

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, tuple[Tensor, Tensor]], widths: Mapping[str, int], *, group_size: int = 64
    ) -> "Adapter":
        """The adapter with these tables, such as the results of rk.combine, rk.invert or rk.select_pairs.

        Args:
            tables: layer name -> (r1, r2), each [D] or compact [D/2].
            widths: layer name -> D, which a table alone does not tell.

        Returns:
            Of "road_1" if all tables are compact, else of "road_4", float32 or wider; its tables are the given ones but
            for rounding, at most 4e-7 of the length of (r1_k, r2_k) in float32.

        Raises:
            TypeError, ValueError: not tables for the width and group_size, a layer without a width; names the layer.
        """
        check_layers(tables, "(r1, r2)")
        return cls(*adapter_algebra.from_tables(tables, widths, group_size), group_size)

    @classmethod
    def compose(cls, adapters: Iterable["Adapter"]) -> "Adapter":
        """The adapter that is equal to these one after the other, the first of them first: R_n ... R_2 R_1.

        Layers that an adapter does not have are its identity. Of "road_1" if all are: angles add and scales multiply,
        without a loss. Otherwise of "road_4", since products of "road_2" are no "road_2", with the rounding of
        from_tables. Float32 or wider. For parts of adapters see rk.combine, and from_tables.

        Raises:
            TypeError, ValueError: none at all, not adapters, another group_size or another width of a layer.
        """
        return cls(*adapter_algebra.compose(_adapters(cls, adapters, "adapters")))

    @classmethod
    def interpolate(cls, parts: Iterable[tuple["Adapter", float]]) -> "Adapter":
        """Between adapters: ``Adapter.interpolate([(a, 0.7), (b, 0.3)])``. A part is (adapter, weight).

        Angles are interpolated linearly and scales by their logarithms: theta = sum w_k theta_k and
        alpha = prod alpha_k ** w_k. So a weight is a power of the adapter: [(a, 1)] is a, [(a, 0.5)] of "road_1" twice
        is a, [(a, 0)] is the identity, weights below 0 undo, and for "road_1" [(a, 1), (b, 1)] is the composition. A
        mean of the matrices themselves would shrink what two adapters rotate differently, and half an adapter would
        halve the activations. Angles count as they were trained, not modulo 2 pi: from a start at 0 they hold the way
        that each adapter went.

        The paper composes adapters by disjoint pairs (rk.combine) and defines no interpolation; this one is ours. The
        result has the widest variant of the parts, whose parameters ("road_1" in "road_2" in "road_4") are
        interpolated one by one. It is float32 or wider; a layer that a part does not have is its identity.

        Raises:
            TypeError, ValueError: no parts, not (adapter, weight), a weight that is not finite, another group_size or
                another width of a layer; an alpha of 0 or less, which has no logarithm (names the layer).
        """
        parts = list(parts)
        for n, part in enumerate(parts):
            if not isinstance(part, (tuple, list)) or len(part) != 2:
                raise TypeError(f"parts[{n}] must be (adapter, weight), got {type(part).__name__}")
        adapters = _adapters(cls, [adapter for adapter, _ in parts], "parts")
        return cls(*adapter_algebra.interpolate(adapters, [weight for _, weight in parts]))


def check_layers(layers, pairs: str = "(theta, alpha)") -> None:
    """Raises TypeError or ValueError unless ``layers`` maps names to pairs, whatever is in them."""
    if not isinstance(layers, Mapping):
        raise TypeError(f"layers must map names to {pairs}, got {type(layers).__name__}")
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for name, pair in layers.items():
        if not isinstance(name, str):
            raise TypeError(f"a layer's name must be a str, got {name!r}")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"layer {name!r} must have a pair {pairs}, got {type(pair).__name__}")


def _adapters(cls, adapters: Iterable, name: str) -> list:
    adapters = list(adapters)
    if not adapters:
        raise ValueError(f"{name} must hold at least one adapter, got none")
    for n, adapter in enumerate(adapters):
        if not isinstance(adapter, cls):
            raise TypeError(f"{name}[{n}] must be an Adapter, got {type(adapter).__name__}")
    return adapters


# Unpickling one calls the constructor, which checks and runs nothing else.
torch.serialization.add_safe_globals([Adapter])
