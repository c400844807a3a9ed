"""Which layers of a model adapters may name, and how each lies in the output of a layer of vLLM's."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.models.utils import PPMissingLayer

from ...serving.layer_names import some
from ._layers import RotatedLinear
from ._slices import Slice, check_cut, slices_of, width_of

NO_BLOCK = "no linear layer of a block ({})"


class Target(NamedTuple):
    """A layer as adapters name it: ``slices`` of the module, from column ``start`` on this rank on."""

    module: str
    start: int
    slices: tuple[Slice, ...]

    @property
    def full(self) -> int:
        return sum(s.full for s in self.slices)


class Modules:
    """The layers of a model, by the names that checkpoints have for them.

    Args:
        model: with vLLM's layers for adapters in it.
        layers: vLLM's name of a layer -> the layer.
        packed: vLLM's name of a packed layer -> the names that adapters have for its parts, in their order.
    """

    def __init__(self, model, layers: Mapping[str, BaseLayerWithLoRA], packed: Mapping[str, list[str]]):
        self._model = model
        self.rotated = {name: layer for name, layer in layers.items() if isinstance(layer, RotatedLinear)}
        self.targets: dict[str, Target] = {}
        self.refused: dict[str, str] = {}  # name -> why not
        self._elsewhere = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, PPMissingLayer))
        self._skipped = tuple(getattr(model, "lora_skip_prefixes", None) or ())
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        self._mapper = mapper and mapper.get_rename_mapper()
        for module, layer in layers.items():
            names = packed.get(module, [module])
            reason = why_not(layer, names)
            if reason is None:
                self._add(module, layer, names)
            else:
                self.refused |= dict.fromkeys((module, *names), reason)

    def _add(self, module: str, layer: RotatedLinear, names: list[str]) -> None:
        slices = slices_of(layer.base_layer)
        if len(names) == 1 and layer.tp_size == 1:
            slices = (Slice(width_of(slices), width_of(slices), 0),)
        layer.set_road_slices(slices)
        start = 0
        for name, own in zip(names, (slices,) if len(names) == 1 else ((s,) for s in slices), strict=True):
            self.targets[name] = Target(module, start, own)
            start += width_of(own)

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """vLLM's names of layers -> the trained model's, of those that this stage of a pipeline has.

        Raises ValueError if the model has no such layer, or one that cannot be rotated, or if two names are one layer.
        """
        found: dict[str, str] = {}
        unknown = []
        for name in names:
            own = self._own_name(name)
            if own in self.targets:
                if (other := found.setdefault(own, name)) != name:
                    raise ValueError(f"layers {other!r} and {name!r} of the adapter are both {own!r} of the model")
            elif own is not None and not own.startswith(self._elsewhere):
                unknown.append(name)
                self._refuse_known(name, own)
        if unknown:
            raise ValueError(f"the adapter has layers that are no linear layers of the model served: {some(unknown)}")
        return found

    def _own_name(self, name: str) -> str | None:
        """None for a layer that the model wants left out, such as those for speculation."""
        if any(name.startswith(prefix) or f".{prefix}" in name for prefix in self._skipped):
            return None
        if self._mapper is None:
            return name
        return self._mapper._map_name(f"{name}.weight").removesuffix(".weight")

    def _refuse_known(self, name: str, own: str) -> None:
        parents = [own.rsplit(".", k)[0] for k in range(own.count(".") + 1)]
        for reason in filter(None, map(self.refused.get, parents)):
            raise ValueError(f"layer {name!r} cannot have a RoAd adapter: it is {reason}")
        kind = type(dict(self._model.named_modules(remove_duplicate=False)).get(own)).__name__
        if kind != "NoneType":
            raise ValueError(f"layer {name!r} cannot have a RoAd adapter: it is {NO_BLOCK.format(kind)}")

    def check_width(self, name: str, width: int) -> None:
        if width != self.targets[name].full:
            raise ValueError(f"layer {name!r} is {self.targets[name].full} features wide in the model, got {width}")

    def check_group_size(self, name: str, group_size: int) -> None:
        check_cut(name, self.targets[name].slices, group_size)


def why_not(layer: BaseLayerWithLoRA, names: list[str]) -> str | None:
    """Why adapters cannot rotate a layer, as the end of "it is ..."; None if they can."""
    if not isinstance(layer, RotatedLinear):
        kind = type(layer).__name__
        if "MoE" in kind:
            return f"one of a mixture of experts ({kind}), whose outputs are never whole"
        return NO_BLOCK.format(kind)
    base = layer.base_layer
    forwards = ColumnParallelLinear.forward, RowParallelLinear.forward
    if not isinstance(base, ReplicatedLinear) and type(base).forward not in forwards:
        return f"a layer that computes its output in its own way ({type(base).__name__})"
    if base.skip_bias_add and getattr(base, "bias", None) is not None:
        return "a layer whose bias is added later by the model, and would not be rotated"
    if getattr(base, "gather_output", False) and layer.tp_size > 1 and layer.n_slices > 1:
        return "a packed layer whose shards are gathered"
    if len(names) not in (1, len(slices_of(base))):
        return f"one of {len(names)} layers in a packed one of {len(slices_of(base))} slices"
    return None
