"""serve: a model of transformers that runs each request with an adapter of its own."""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

try:
    import transformers
    from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
except ImportError as error:
    raise ImportError(f"road_kernels.integrations.transformers needs transformers 5 or newer: {error}") from error

from ...serving import Adapter, AdapterBank
from . import _supported
from ._layers import DecoderLayer, Positions
from ._packing import shared_copy

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"road_kernels.integrations.transformers needs transformers 5, got {transformers.__version__}")


def serve(
    model: nn.Module,
    *,
    capacity: int,
    group_size: int = 64,
    compact: bool = False,
    max_positions: int | None = None,
) -> "Served":
    """The model with room for ``capacity`` adapters at once, each request of a batch with its own.

    Args:
        model: a LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM of transformers, on one
            device, float16, bfloat16, float32 or float64. It stays as it is and can be used beside the served one; the
            two share all weights. q_proj, k_proj and v_proj become rows of one weight, and so do gate_proj and
            up_proj: the parameters of ``model`` are then views of these, so that nothing is there twice.
        capacity: the number of slots of the bank.
        group_size: g of all adapters; divides the width of each linear layer. One that does not divide the heads costs
            one kernel more in each layer.
        compact: half the memory for the tables, for adapters of road_1 only.
        max_positions: how many positions a sequence may have; of the model's config by default. A position beyond is
            an IndexError on the CPU, a device-side assertion on a GPU.

    Returns:
        The served model, for inference: forward and generate without gradients.

    Raises:
        TypeError, ValueError: another class, a quantized or dispatched model, or a setting that cannot be served.
    """
    family = _supported.check(model)
    if max_positions is None:
        max_positions = model.config.max_position_embeddings
    if isinstance(max_positions, bool) or not isinstance(max_positions, int) or max_positions < 1:
        raise ValueError(f"max_positions must be an int, 1 or more, got {max_positions!r}")
    widths = {name: layer.out_features for name, layer in _supported.projections(model)}
    packs = _supported.packs(model)
    bank = AdapterBank(widths, capacity, group_size=group_size, compact=compact, packed=packs, device=model.device)

    served = shared_copy(model)
    inner = served.model
    norms = [*[layer.input_layernorm for layer in inner.layers][1:], inner.norm]
    inner.layers = nn.ModuleList(
        DecoderLayer(layer, f"model.layers.{k}", bank, norm, first=k == 0, last=k == len(norms) - 1)
        for k, (layer, norm) in enumerate(zip(inner.layers, norms, strict=True))
    )
    inner.norm = nn.Identity()  # the last layer has it
    inner.rotary_emb = Positions(inner.rotary_emb, max_positions, model.device)
    served.__class__ = _SERVED[family]
    served.bank = bank
    return served.eval()


class Served:
    """A model that serve returned: transformers' own, with adapters.

    bank: the AdapterBank, whose other methods (replace, update, hold, ids, names, free) work here too. Layers have
    the names that they have in the model: "model.layers.0.self_attn.q_proj".
    """

    bank: AdapterBank

    def load(self, name: str, adapter: Adapter | str | os.PathLike) -> int:
        """Puts an adapter into a free slot and returns the slot: AdapterBank.load, with errors as there.

        adapter: an Adapter, or the folder of a PEFT RoAd checkpoint, of any variant. Layers of the model that it does
        not have are the identity.
        """
        return self.bank.load(name, adapter, partial=True)

    def evict(self, name: str) -> None:
        """Removes an adapter: AdapterBank.evict."""
        self.bank.evict(name)

    @torch.no_grad()
    def forward(
        self,
        *args,
        adapter_names: Sequence[str | None] | None = None,
        adapter_ids: Tensor | None = None,
        **kwargs,
    ):
        """The model's forward, and which adapter each request uses.

        Args:
            adapter_names: one name per request, None for no adapter.
            adapter_ids: instead, ids as the bank makes them, int32 or int64 [requests] or [requests, tokens] on the
                model's device, -1 for none. The call then neither synchronises nor depends on the host, so it can be
                captured in a CUDA graph: fill the same tensor with ``bank.ids(names, out=...)`` between replays.
                Neither of the two: no adapter.

        Raises:
            KeyError: no adapter of that name. ValueError: not one per request; attentions or hidden states asked for.
            TypeError: names or ids that are no list or tensor. RuntimeError: under torch.autocast.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name, getattr(self.config, name, False)):
                raise ValueError(f"{name} must be False: a served model does not keep them")
        if torch.is_autocast_enabled(self.device.type):
            raise RuntimeError("a served model computes in its own dtype: call it outside of torch.autocast")
        with self._ids(adapter_names, adapter_ids, _given(args, kwargs)) as ids:
            return super().forward(*args, adapter_ids=ids, **kwargs)

    def generate(
        self,
        *args,
        adapter_names: Sequence[str | None] | None = None,
        adapter_ids: Tensor | None = None,
        **kwargs,
    ):
        """transformers' generate, with the adapters of forward: one per prompt, whose beams and samples all use it.

        The adapters are held: whatever other threads evict, replace or update, they stay what they are to the end.
        """
        with self._ids(adapter_names, adapter_ids, _given(args, kwargs)) as ids:
            if ids is not None and ids.dim() != 1:
                raise ValueError(f"adapter_ids must be [requests] to generate, got {list(ids.shape)}")
            return super().generate(*args, adapter_ids=ids, **kwargs)

    @contextmanager
    def _ids(self, names, ids: Tensor | None, given: Tensor | None) -> Iterator[Tensor | None]:
        if names is not None and ids is not None:
            raise ValueError("adapter_names and adapter_ids were both given: one of them is needed")
        if ids is not None and (not isinstance(ids, Tensor) or ids.dim() == 0):
            got = "a tensor without dimensions" if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"adapter_ids must be a tensor of one id per request, got {got}")
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
            raise TypeError(f"adapter_names must be a list of names, one per request, got {type(names).__name__}")
        count = None if names is None and ids is None else len(names if ids is None else ids)
        if given is not None and count not in (None, len(given)):
            of = "adapter_names" if ids is None else "adapter_ids"
            raise ValueError(f"{of} must be one per request, {len(given)}, got {count}")
        if names is None:
            yield ids
        else:
            with self.bank.hold(names) as held:
                yield held

    def save_pretrained(self, *args, **kwargs):
        raise NotImplementedError("a served model is not saved: save the model that serve was given")

    def _apply(self, *args, **kwargs):
        raise RuntimeError("a served model cannot be moved or converted: move the model, then call serve")

    def __init_subclass__(cls, **kwargs):
        """generate asks the signature of forward what a model takes: transformers' arguments, and the two of ours."""
        super().__init_subclass__(**kwargs)

        def forward(self, *args, **kwargs):
            return Served.forward(self, *args, **kwargs)

        ours = [p for p in inspect.signature(Served.forward).parameters.values() if p.kind is p.KEYWORD_ONLY]
        signature = inspect.signature(super().forward)
        *theirs, others = signature.parameters.values()  # the last is **kwargs
        forward.__signature__ = signature.replace(parameters=[*theirs, *ours, others])
        forward.__doc__ = Served.forward.__doc__
        cls.forward = forward


def _given(args: tuple, kwargs: dict) -> Tensor | None:
    """The prompts of a call, [requests, ...]."""
    found = (*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
    return next((t for t in found if isinstance(t, Tensor)), None)


class ServedLlama(Served, LlamaForCausalLM):
    pass


class ServedMistral(Served, MistralForCausalLM):
    pass


class ServedQwen2(Served, Qwen2ForCausalLM):
    pass


class ServedQwen3(Served, Qwen3ForCausalLM):
    pass


_SERVED = {"Llama": ServedLlama, "Mistral": ServedMistral, "Qwen2": ServedQwen2, "Qwen3": ServedQwen3}
