"""RoAd1 adapters of two tasks under one encoder: each keeps to its half of the pairs, each row says whose it uses."""

import torch
from torch import Tensor, nn

import road_kernels as rk

GROUP_SIZE = 64
A, B, BOTH, NONE = 0, 1, 2, -1  # ids of the bank's adapters, and of none
USES = {"none": NONE, "A's half": A, "B's half": B, "both halves": BOTH}


class Halves(nn.Module):
    """A frozen encoder with a bank of three adapters after every linear layer, made of two tasks' parameters.

    theta and alpha of a layer are [2, D/2], row 0 task A's and row 1 task B's. Task A's count on the first half of
    the pairs and task B's on the second; everywhere else the bank has the identity, so they keep their start.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.layers = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        self.theta, self.alpha = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in self.layers:
            key, pairs = name.replace(".", "/"), layer.out_features // 2
            self.theta[key] = nn.Parameter(torch.zeros(2, pairs))
            self.alpha[key] = nn.Parameter(torch.ones(2, pairs))
            layer.register_forward_hook(self._hook(key, layer.out_features))
        self.adapter_ids: Tensor | None = None

    def adapters(self) -> list[nn.Parameter]:
        return [*self.theta.values(), *self.alpha.values()]

    def bank(self, key: str, dim: int) -> tuple[Tensor, Tensor]:
        """(r1, r2) [3, D/2]: A's half, B's half, both. Differentiable, with gradients of zero outside the halves."""
        r1, r2 = rk.road_tables(self.theta[key], self.alpha[key], group_size=GROUP_SIZE)
        (a, a_pairs), (b, b_pairs) = parts = [((r1[task], r2[task]), half(dim, task)) for task in (A, B)]
        adapters = (
            rk.select_pairs(a, a_pairs, dim=dim, group_size=GROUP_SIZE),
            rk.select_pairs(b, b_pairs, dim=dim, group_size=GROUP_SIZE),
            rk.combine(parts, dim=dim, group_size=GROUP_SIZE),
        )
        return tuple(torch.stack(tables) for tables in zip(*adapters, strict=True))

    def _hook(self, key: str, dim: int):
        def rotate(module, inputs, output):
            if self.adapter_ids is None:
                return output
            return rk.rotate_batched(output, *self.bank(key, dim), self.adapter_ids, group_size=GROUP_SIZE)

        return rotate

    def forward(self, batch: dict[str, Tensor], uses: Tensor | None) -> tuple[Tensor, ...]:
        """Hidden states of the last tokens, [B, 384] each: of the embeddings and then of every layer.

        Args:
            uses: [B], the adapter of each row (A, B, BOTH or NONE); it is applied to the row's last token alone. None
                runs the plain encoder.
        """
        last = batch["attention_mask"].sum(1) - 1
        self.adapter_ids = None if uses is None else at_position(uses, last, batch["input_ids"].shape[1])
        try:
            hidden = self.encoder(**batch, output_hidden_states=True).hidden_states
        finally:
            self.adapter_ids = None
        return tuple(h[torch.arange(len(last)), last] for h in hidden)


def half(dim: int, task: int) -> range:
    """The pairs of a task: the first half of them for A, the second for B."""
    middle = dim // 4
    return range(middle) if task == A else range(middle, dim // 2)


def at_position(uses: Tensor, position: Tensor, tokens: int) -> Tensor:
    """[B, tokens] ids per token: uses[b] at position[b], -1 (no adapter) everywhere else."""
    ids = torch.full((len(uses), tokens), NONE)
    ids[torch.arange(len(uses)), position] = uses
    return ids
