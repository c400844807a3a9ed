"""Whether the GPUs here can run the architectures that the CUDA kernels were built for."""

import ctypes
import re

import torch

Capability = tuple[int, int]


def serves(architectures: str, capability: Capability) -> bool:
    """For TORCH_CUDA_ARCH_LIST's notation, as in "8.0;9.0a;10.0+PTX". What is in another notation counts as serving.

    Code for X.Y runs on X.Z with Z >= Y, PTX on everything from X.Y on; "a" is for X.Y alone, "f" for its family.
    """
    for name in re.split(r"[;,\s]+", architectures.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if found is None:
            return True
        built, kind, ptx = (int(found[1]), int(found[2])), found[3], found[4]
        if capability == built or (kind != "a" and capability[0] == built[0] and capability >= built):
            return True
        if ptx and not kind and capability >= built:
            return True
    return False


def of_the_machine() -> list[Capability] | None:
    """Of all GPUs, by NVML, or None where it does not say. torch would initialise CUDA, which no forked process can."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        count, device, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        capabilities = []
        for index in range(0 if failed else count.value):
            failed = (
                failed
                or nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
                or nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            )
            capabilities.append((major.value, minor.value))
        return capabilities if capabilities and not failed else None
    except (OSError, AttributeError):
        return None


def of_the_visible() -> list[Capability] | None:
    """Of the GPUs that CUDA_VISIBLE_DEVICES leaves, by CUDA, which this initialises; None in a process forked since."""
    try:
        return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    except RuntimeError:
        return None


def why_unserved(architectures: str) -> str | None:
    """Why kernels for these architectures cannot be used here, or None. Where nobody says what GPU it is: None."""
    found = of_the_visible() if torch.cuda.is_initialized() else of_the_machine()
    if found and len({serves(architectures, capability) for capability in found}) == 2:
        found = of_the_visible()  # NVML's numbers are not CUDA's, so which of them can be seen is CUDA's to say
    unserved = sorted({capability for capability in found or () if not serves(architectures, capability)})
    if not unserved:
        return None
    names = ", ".join(f"{major}.{minor}" for major, minor in unserved)
    return (
        f"built for compute capability {architectures}, but a GPU here has {names}: build it with "
        f"TORCH_CUDA_ARCH_LIST='{names.replace(', ', ';')}', or hide that GPU with CUDA_VISIBLE_DEVICES"
    )
