"""The backends of road_kernels that can be timed on a device."""

import torch

import road_kernels as rk


def usable_backends(device: torch.device) -> list[str]:
    """Those that support the device, the preferred one first."""
    info = rk.backend_info()["backends"]
    return [
        n for n, row in info.items() if row["usable"] and (row["devices"] == "any" or device.type in row["devices"])
    ]


def kernel_backends(device: torch.device) -> list[str]:
    """Those with GPU kernels; on a CPU, which only rehearses a run, all of them."""
    found = usable_backends(device)
    return [name for name in found if name in ("cuda", "triton")] or found
