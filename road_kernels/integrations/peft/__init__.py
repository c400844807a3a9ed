"""The RoAd layers of Hugging Face PEFT on these kernels.

    from road_kernels.integrations import peft as road_peft

    road_peft.enable()            # every RoAd model of this process, created before or after
    ...
    road_peft.disable()           # PEFT's own code again

    with road_peft.enabled(): ... # for a block

Parameters, state_dicts, checkpoints, configuration and errors stay PEFT's: only the arithmetic of the layers is
replaced (forward, backward, mixed batches, merge, unmerge). Needs PEFT 0.18 or newer. The guide: docs/peft.md.

What differs:

- The rotation is computed in float32 and rounded once; 16-bit outputs are neither kept nor passed on in float32
  (PEFT's plain layers return the dtype of the base layer and so does this; its bitsandbytes layers return the dtype
  of the adapter and so does this).
- Several active adapters are one rotation, by the product of their 2x2 blocks.
- A mixed batch (``adapter_names=[...]``) is one call per layer, or one per group_size where they differ, also on
  float16 and bfloat16 models with float32 adapters (PEFT raises an index_put error there), and on bitsandbytes layers.
  Rows have their own heads of modules_to_save, generate repeats the names per beam, compiled layers and blocks take the
  names as an input, and a call that raises leaves the model as it was.
- merge and unmerge build no D x D matrix. A merge or unmerge that is refused leaves the layer unchanged.
- Layers whose weights are DTensors work, under FSDP2 and in tensor parallelism (docs/distributed.md), merged in the
  memory of their shards.
"""

from ._switch import disable, enable, enabled, is_enabled

__all__ = ["disable", "enable", "enabled", "is_enabled"]
