"""RoAd adapters in vLLM: checkpoints load where LoRA's do, and one batch may mix RoAd, LoRA and neither.

    vllm serve MODEL --enable-lora --max-loras 8 --lora-modules anna=/adapters/anna

Nothing has to be called: vLLM finds ``register`` by its entry point (group ``vllm.general_plugins``) and calls it in
every process. It is idempotent, checks the vLLM that it meets, and leaves vLLM as it was, with one line in the log,
where something that it needs is missing. Needs vLLM 0.32 or newer. docs/vllm.md has what is supported.

How it works: each class of vLLM for a linear layer with LoRA gets a subclass that rotates the layer's output in place
by the tables of its row's adapter, after the layer (bias, quantisation, all-reduce, LoRA) is done. vLLM's manager of
adapters gets a subclass that reads RoAd checkpoints too. Slots, eviction, pinning and scheduling stay vLLM's.

Importing this package imports nothing of vLLM.
"""

from ._register import register
from .worker import RoadWorker, pack

__all__ = ["RoadWorker", "pack", "register"]
