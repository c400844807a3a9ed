"""The calls that the GPU tests make, by name, what profiler and allocator report about one, and what holds for all."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from support.backends import DEVICE
from support.problems import apply, make_params, make_x, op_form
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from road_kernels.backends import registry

ADAPTERS = 5
CYCLES = 100_000_000  # 50 ms or more, in which work launched on another stream would run too early
FORWARD = ("forward", "batched forward", "in place", "batched in place")
BACKWARD = (
    "backward",
    "batched backward",
    "backward of x",
    "batched backward of x",
    "backward of the parameters",
    "backward from the output",
    "batched backward from the output",
)
WORK = FORWARD + BACKWARD


@dataclass
class Work:
    """A call on tensors that stay in place, as a CUDA graph captures it."""

    name: str
    kernels: str
    form: str
    group_size: int
    x: torch.Tensor
    gz: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    ids: torch.Tensor | None

    def __call__(self) -> tuple[torch.Tensor, ...]:
        if self.name in FORWARD:
            kw = {"group_size": self.group_size, "inplace": "in place" in self.name, "backend": self.kernels}
            return (apply(self.x, self.p, self.q, self.form, self.ids, **kw),)
        backend = registry._loaded[self.kernels][0]
        wanted = ["parameters" not in self.name] + ["of x" not in self.name] * 2
        grads = backend.rotate_backward(
            *(self.gz, self.x, self.p, self.q, self.ids, op_form(self.form), self.group_size),
            "from the output" in self.name,
            wanted,
        )
        return tuple(g for g in grads if g is not None)

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.x, self.gz, self.p, self.q, self.ids) if t is not None]


def make_work(
    name, kernels, form="road_1", rows=1200, dim=512, group_size=64, dtype=torch.bfloat16, seed=0, adapters=ADAPTERS
) -> Work:
    batched = "batched" in name
    p, q = make_params(form, adapters if batched else None, dim, seed=seed + 1)
    x, gz = make_x(rows, dim, dtype=dtype, seed=seed), make_x(rows, dim, dtype=dtype, seed=seed + 2)
    ids = make_ids(rows, adapters, seed) if batched else None
    return Work(name, kernels, form, group_size, x, gz, p, q, ids)


def make_ids(rows: int, adapters: int, seed: int = 0) -> torch.Tensor:
    """In random order; -1, the first and the last adapter are among them."""
    ids = torch.randint(-1, adapters, (rows,), generator=torch.Generator().manual_seed(seed), device="cpu")
    ids[:3] = torch.tensor([adapters - 1, -1, 0], device="cpu")
    return ids.to(DEVICE)


def device_events(run) -> list[str]:
    """The names of what one call does on the device, in order: kernels, copies, fills."""
    run()
    for _ in range(3):  # the first profile of a process may be empty, and no call of ours does nothing
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        if events := [e for e in profiler.events() if e.device_type == DeviceType.CUDA]:
            break
    return [e.name for e in sorted(events, key=lambda e: e.time_range.start)]


def is_torchs(name: str) -> bool:
    """Whether it is a kernel of PyTorch, or of the libraries with which it sorts and searches."""
    return any(part in name for part in ("at::", "at_cuda_detail", "cub::", "thrust::", "Memcpy", "Memset"))


def requested_bytes(run) -> tuple[int, tuple[torch.Tensor, ...]]:
    """The bytes that one call requests from the caching allocator in total, and its result."""
    run()
    torch.cuda.synchronize()
    count = lambda: torch.cuda.memory_stats()["requested_bytes.all.allocated"]  # noqa: E731
    before = count()
    result = run()
    return count() - before, result


def ulp(t: torch.Tensor) -> torch.Tensor:
    """The distance from |t| to the next number of its dtype, in float64."""
    exponent = torch.frexp(t.double().abs().clamp_min(torch.finfo(t.dtype).tiny)).exponent
    return torch.ldexp(torch.full_like(t, torch.finfo(t.dtype).eps, dtype=torch.float64), exponent - 1)


def capture(run):
    """(the graph, the tensors that a replay writes)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = run()
    return graph, written


@contextlib.contextmanager
def refusing_synchronisation():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_ordered_on_the_current_stream(work) -> None:
    """work: a Work, or a FusedWork of fused_work.py."""
    values = [t.clone() for t in work.tensors()]
    want = [t.clone() for t in work()]  # also compiles and loads
    for t in work.tensors():
        t.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        for t, value in zip(work.tensors(), values, strict=True):
            t.copy_(value)
        got = work()
    stream.synchronize()
    assert all(map(torch.equal, got, want))


def assert_replays_read_current_contents(make: Callable) -> None:
    """make: a function of a seed that makes the same work with other numbers in its tensors."""
    work = make(0)
    graph, written = capture(work)
    for seed in (11, 12):
        fresh = make(seed)
        if fresh.ids is not None and seed == 12:
            fresh.ids.fill_(-1)  # only pass-through rows but one
            fresh.ids[-1] = ADAPTERS - 1
        for mine, new in zip(work.tensors(), fresh.tensors(), strict=True):
            mine.copy_(new)
        graph.replay()
        assert all(map(torch.equal, written, fresh()))


def assert_repeatable(work) -> None:
    """Bitwise, also next to other work, which changes the order in which blocks run."""
    kept = [t.clone() for t in work.tensors()]
    first = [t.clone() for t in work()]
    beside, noise = torch.cuda.Stream(), torch.randn(4096, 4096)
    beside.wait_stream(torch.cuda.current_stream())
    for repeat in range(5):
        for t, value in zip(work.tensors(), kept, strict=True):
            t.copy_(value)
        if repeat:
            with torch.cuda.stream(beside):
                noise @ noise
        assert all(map(torch.equal, work(), first))
    torch.cuda.synchronize()
