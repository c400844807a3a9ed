"""transformers models served with RoAd inside the kernels of their neighbours: an adapter per request, no launch more.

from road_kernels.integrations.transformers import serve

served = serve(model, capacity=100)                   # Llama, Mistral, Qwen2 or Qwen3
served.load("anna", "folder/of/a/peft/checkpoint")
served.generate(input_ids, attention_mask=mask, adapter_names=["anna", None])
"""

from ._serve import Served, serve

__all__ = ["Served", "serve"]
