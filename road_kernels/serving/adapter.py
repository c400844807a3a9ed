"""Adapter: the parameters of one trained RoAd adapter, for all of its layers."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from ..ops import checks
from . import checkpoint


@dataclass(frozen=True, eq=False)
class Adapter:
    """The parameters of one adapter, checked on construction.

    Args:
        layers: layer name -> (theta, alpha), each [P] and packed as ``variant`` says (see road_apply), any device,
            float16, bfloat16, float32 or float64.
        variant: "road_1", "road_2" or "road_4", the same for all layers.
        group_size: the g that it was trained with; with another g the same parameters would mean another adapter.

    Raises:
        TypeError, ValueError: naming the layer, what it got and what it needs.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    variant: str = "road_1"
    group_size: int = 64

    def __post_init__(self):
        checks.check_variant(self.variant)
        if not isinstance(self.layers, Mapping):
            raise TypeError(f"layers must map names to (theta, alpha), got {type(self.layers).__name__}")
        if not self.layers:
            raise ValueError("layers must hold at least one layer, got none")
        for name, pair in self.layers.items():
            if not isinstance(name, str):
                raise TypeError(f"a layer's name must be a str, got {name!r}")
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"layer {name!r} must have a pair (theta, alpha), got {type(pair).__name__}")
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

    @property
    def widths(self) -> dict[str, int]:
        """Layer name -> D, the output features of the layer that the adapter was made for."""
        return {name: checks.packed_dim(self.variant, len(theta)) for name, (theta, _) in self.layers.items()}

    @classmethod
    def from_peft(cls, folder: str | os.PathLike, *, ignore: Collection[str] = ()) -> "Adapter":
        """Reads the folder that PEFT's save_pretrained writes for a RoAd adapter; needs the package safetensors.

        Args:
            folder: holds adapter_config.json and adapter_model.safetensors. The layers get the names of the modules
                in the model that was trained, such as "model.layers.0.self_attn.q_proj".
            ignore: modules whose other weights the checkpoint may hold (``modules_to_save``) because they are served
                separately, by name or by the end of it ("classifier"). Other weights are refused: without them the
                adapter would not do what it was trained for.

        Raises:
            FileNotFoundError: the folder or one of the two files is missing. Pickled weights (.bin) are not read.
            ValueError: the files are damaged, or not those of a RoAd adapter. TypeError: weights of another dtype.
        """
        layers, variant, group_size = checkpoint.read_peft(folder, ignore)
        try:
            return cls(layers, variant, group_size)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{os.fspath(folder)}: {error}") from None
