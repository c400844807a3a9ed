"""What FSDP2 (torch.distributed.fsdp.fully_shard) does with a module's parameters, as far as we must know it."""

import sys

from torch import nn


def is_gathered(module: nn.Module) -> bool:
    """Whether FSDP2 manages parameters of this module itself and has gathered them, on all ranks or on groups of them.

    The module then has other parameters than FSDP keeps, and what is written to them is lost when FSDP shards them
    again. They do not tell, and there is no public function that does. Where PyTorch's own records have moved, the
    answer is False.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed import _composable_state

    for reference in list(getattr(_composable_state, "_module_state_mapping", {}).values()):
        state = reference() if callable(reference) else reference
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in filter(None, groups):
            for parameter in getattr(group, "fsdp_params", ()):
                info = parameter._module_info
                if module in (info.module, *info.shared_modules) and parameter.sharded_state.name != "SHARDED":
                    return True
    return False
