"""A Llama of transformers with random weights, and RoAd on all its linear layers."""

import torch
from peft import RoadConfig
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(variant, group_size) -> RoadConfig:
    return RoadConfig(variant=variant, group_size=group_size, target_modules=TARGETS, task_type="CAUSAL_LM")


def tiny_llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype)
