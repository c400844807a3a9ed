"""The backends of road_kernels that can be timed on a device."""

import torch

import road_kernels as rk


def usable_backends(device: torch.device) -> list[str]:
    """Those that serve the device, the best first."""
    info = rk.backend_info()["backends"]
    return [
        n for n, row in info.items() if row["usable"] and (row["devices"] == "any" or device.type in row["devices"])
    ]


def kernel_backends(device: torch.device) -> list[str]:
    """Those with kernels for a GPU; on a CPU, where this is a rehearsal, all that there are."""
    found = usable_backends(device)
    return [name for name in found if name in ("cuda", "triton")] or found
