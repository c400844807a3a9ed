"""What the calls of all ops share: arguments as the kernels take them, and launches that are ready for equal calls."""

import torch

from ..ops import checks

# How calls of equal arguments, but for the addresses and ids, are launched: their checks and preparation are skipped.
_READY_AT_MOST = 4096
ready = {}


def keep_ready(signature, runner):
    """runner: what Launch returns. Neither is None for calls that may be repeated so."""
    if runner is not None and signature is not None:
        if len(ready) >= _READY_AT_MOST:
            ready.clear()
        ready[signature] = runner


def is_current(x) -> bool:
    return not x.is_cuda or x.get_device() == torch.cuda.current_device()


def same(given, used) -> bool:
    return all(a is b for a, b in zip(given, used, strict=True))


class on_device:
    """Makes the device of the tensors current: Triton launches on the current one."""

    def __new__(cls, x):
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            return torch.cuda.device(x.device)
        return super().__new__(cls)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def arguments(x, p, q, adapter_ids, form, group_size):
    """(p, q, adapter_ids) as the kernels take them."""
    checks.check_arguments(x, p, q, adapter_ids, form, group_size)
    p = p if p.stride(-1) == 1 else p.contiguous()
    q = q if q.stride(-1) == 1 else q.contiguous()
    if adapter_ids is None:
        return p, q, None
    adapter_ids = adapter_ids.contiguous()
    if adapter_ids.is_cpu:  # interpreted; on a GPU the kernels assert, as reading the ids here would synchronise
        bad = ((adapter_ids < -1) | (adapter_ids >= p.shape[0])).flatten().nonzero()
        if len(bad):
            position = int(bad[0])
            checks.refuse_id(int(adapter_ids.flatten()[position]), position, p.shape[0])
    return p, q, adapter_ids


def output(like):
    return torch.empty_like(like, memory_format=torch.contiguous_format)
