"""A decoder layer whose elementwise kernels rotate: what stands in for transformers' own in a served model."""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...functional import rotate_add_rms_norm, rotate_batched, rotate_rope, rotate_silu_mul
from ._packing import packed
from ._supported import GATE_UP, QKV


class Positions(nn.Module):
    """In place of transformers' rotary embedding: what a layer needs of it, once a step.

    cos_sin: [positions, head_dim] float32, cos in the first half, sin in the second, out of the module it replaces.
    """

    def __init__(self, rotary: nn.Module, positions: int, device: torch.device):
        super().__init__()
        with torch.no_grad():
            at = torch.arange(positions, device=device)[None]
            cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), at)
            half = cos.shape[-1] // 2
            table = torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)
        self.register_buffer("cos_sin", table, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(positions, cos_sin, the ids of no adapter)."""
        return position_ids, self.cos_sin, x.new_full(x.shape[:1], -1, dtype=torch.int32)


class DecoderLayer(nn.Module):
    """Takes and returns (y, residual): the normalised input of the layer and the sum before it was normalised.

    The first layer takes the embeddings, the last returns y only, which the model's norm has made already.
    """

    def __init__(self, layer: nn.Module, name: str, bank, norm: nn.Module, first: bool, last: bool):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        # What transformers' attention functions read from the module that calls them.
        self.config, self.layer_idx, self.is_causal = attention.config, attention.layer_idx, True
        self.num_key_value_groups, self.scaling = attention.num_key_value_groups, attention.scaling
        self.sliding_window = getattr(attention, "sliding_window", getattr(self.config, "sliding_window", None))
        # By which earlier versions of transformers choose the mask.
        self.attention_type = getattr(layer, "attention_type", None)
        self.own_attention = sys.modules[type(attention).__module__].eager_attention_forward

        self.head_dim = attention.head_dim
        self.heads = tuple(getattr(attention, name).out_features // self.head_dim for name in ("q_proj", "k_proj"))
        self.widths = [getattr(attention, name).out_features for name in QKV]
        self.qkv_proj, self.o_proj = packed([getattr(attention, name) for name in QKV]), attention.o_proj
        self.gate_up_proj, self.down_proj = packed([getattr(mlp, name) for name in GATE_UP]), mlp.down_proj
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.input_norm, self.attention_norm = layer.input_layernorm if first else None, layer.post_attention_layernorm
        self.next_norm, self.last = norm, last

        self.of_qkv, self.of_o = (bank.layer(f"{name}.self_attn.{part}_proj") for part in ("qkv", "o"))
        self.of_gate_up, self.of_down = (bank.layer(f"{name}.mlp.{part}_proj") for part in ("gate_up", "down"))
        self.group_size = bank.group_size
        # What stands between the rotation and RoPE, or pairs across heads, needs a rotation of its own.
        self.rotates_apart = self.q_norm is not None or self.head_dim % self.group_size != 0

    def forward(
        self,
        hidden_states: Tensor | tuple[Tensor, Tensor],
        attention_mask=None,
        position_embeddings: tuple[Tensor, Tensor, Tensor] | None = None,
        adapter_ids: Tensor | None = None,
        cache=None,
        past_key_values=None,  # the cache, as earlier versions of transformers call it
        **kwargs,
    ) -> Tensor | tuple[Tensor, Tensor]:
        positions, cos_sin, no_ids = position_embeddings
        ids = no_ids if adapter_ids is None else adapter_ids
        if self.input_norm is None:
            y, residual = hidden_states
        else:
            y, residual = _rms_norm(hidden_states, self.input_norm), hidden_states

        qkv = self._rotated(self.qkv_proj(y), positions, cos_sin, ids, no_ids)
        y = self.o_proj(self._attended(qkv, attention_mask, past_key_values if cache is None else cache, kwargs))
        # The caller's embeddings are not written to.
        y, residual = self._add_norm(y, residual, self.attention_norm, self.of_o, ids, self.input_norm is None)
        y = self._of(rotate_silu_mul, self.of_gate_up, self.gate_up_proj(y), ids)
        y, residual = self._add_norm(self.down_proj(y), residual, self.next_norm, self.of_down, ids, True)
        return y if self.last else (y, residual)

    def _of(self, function, tables, x: Tensor, ids: Tensor, **kwargs):
        return function(x, tables.r1, tables.r2, ids, group_size=self.group_size, **kwargs)

    def _add_norm(self, x: Tensor, residual: Tensor, norm, tables, ids: Tensor, inplace: bool):
        about = {"eps": norm.variance_epsilon, "group_size": self.group_size, "inplace": inplace}
        return rotate_add_rms_norm(x, residual, norm.weight, tables.r1, tables.r2, ids, **about)

    def _rotated(self, qkv: Tensor, positions: Tensor, cos_sin: Tensor, ids: Tensor, no_ids: Tensor) -> Tensor:
        """The output of the packed projection, rotated and, for q and k, with its positions; in place."""
        group_size = self.group_size
        if self.rotates_apart:
            self._of(rotate_batched, self.of_qkv, qkv, ids, inplace=True)
            ids, group_size = no_ids, 2  # any that divides head_dim
            if self.q_norm is not None:
                q, k, v = qkv.split(self.widths, -1)
                qkv = torch.cat((self._of_heads(q, self.q_norm), self._of_heads(k, self.k_norm), v), -1)
        return rotate_rope(
            qkv,
            positions,
            cos_sin,
            self.of_qkv.r1,
            self.of_qkv.r2,
            ids,
            num_heads=self.heads[0],
            num_kv_heads=self.heads[1],
            head_dim=self.head_dim,
            group_size=group_size,
            inplace=True,
        )

    def _of_heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        return _rms_norm(x.unflatten(-1, (-1, self.head_dim)), norm).flatten(-2)

    def _attended(self, qkv: Tensor, attention_mask, cache, kwargs: dict) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in qkv.split(self.widths, -1))
        if cache is not None:
            # The place in a static cache, for the versions of transformers whose caches do not count for themselves.
            place = ({"cache_position": kwargs["cache_position"]},) if "cache_position" in kwargs else ()
            k, v = cache.update(k, v, self.layer_idx, *place)
        kind = self.config._attn_implementation
        attend = self.own_attention if kind == "eager" else ALL_ATTENTION_FUNCTIONS[kind]
        about = {"dropout": 0.0, "scaling": self.scaling, "sliding_window": self.sliding_window}
        return attend(self, q, k, v, attention_mask, **about, **kwargs)[0].flatten(-2)


def _rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
