"""The model of serving_loop.py: a decoder in plain PyTorch that takes a packed batch of tokens of many requests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, HEAD_DIM, LONGEST = 512, 32, 128
LAYERS = ("qkv", "out", "gate_up", "down")


class Block(nn.Module):
    """Attention and a gated MLP. ``rotate(layer, h)`` is called on the output of each of its four linear layers."""

    def __init__(self, width: int, index: int):
        super().__init__()
        hidden = 3 * width
        self.names = {layer: f"blocks.{index}.{layer}" for layer in LAYERS}
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, rotate) -> Tensor:
        h = rotate(self.names["qkv"], self.qkv(F.rms_norm(x, x.shape[-1:])))
        q, k, v = h.unflatten(-1, (3, -1, HEAD_DIM)).unbind(1)  # each [tokens, heads, HEAD_DIM]
        cache[0, rows, positions], cache[1, rows, positions] = k, v
        k, v = cache[:, rows]  # [tokens, LONGEST, heads, HEAD_DIM]: those of each token's own request
        visible = torch.arange(LONGEST) <= positions[:, None]
        h = F.scaled_dot_product_attention(
            q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible[:, None, None]
        )
        x = x + rotate(self.names["out"], self.out(h.flatten(1)))
        gate, up = rotate(self.names["gate_up"], self.gate_up(F.rms_norm(x, x.shape[-1:]))).chunk(2, -1)
        return x + rotate(self.names["down"], self.down(F.silu(gate) * up))


class Decoder(nn.Module):
    def __init__(self, width: int, depth: int):
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LONGEST, width)
        self.blocks = nn.ModuleList(Block(width, k) for k in range(depth))
        self.head = nn.Linear(width, VOCABULARY)

    def make_cache(self, rows: int) -> Tensor:
        """Keys and values: [blocks, 2, rows, LONGEST, heads, HEAD_DIM]."""
        heads = self.head.in_features // HEAD_DIM
        return torch.zeros(len(self.blocks), 2, rows, LONGEST, heads, HEAD_DIM)

    def forward(self, tokens: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, rotate) -> Tensor:
        """tokens, the cache row of each and its position: all [N]. Returns logits [N, VOCABULARY]."""
        x = self.words(tokens) + self.places(positions)
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x = block(x, block_cache, rows, positions, rotate)
        return self.head(F.rms_norm(x, x.shape[-1:]))

    def adapted_layers(self) -> dict[str, nn.Linear]:
        return {name: self.get_submodule(name) for block in self.blocks for name in block.names.values()}
