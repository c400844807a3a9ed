"""What can be timed here."""

import torch

import road_kernels as rk


def backends(device: torch.device) -> list[str]:
    """Those that serve the device, the best first."""
    info = rk.backend_info()["backends"]
    return [
        n for n, row in info.items() if row["usable"] and (row["devices"] == "any" or device.type in row["devices"])
    ]


def compile_afresh(function):
    """Compiled for the shapes of one case, with no memory of the others."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)
