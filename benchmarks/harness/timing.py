"""How long a call takes: on a CPU, on a GPU in a CUDA graph, and on a GPU called eagerly.

Times are seconds per call. ``calls(n)`` makes the next n calls of one provider.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Calls = Callable[[int], None]
WARM_UP_SECONDS = 0.1  # the clocks of an idle GPU take some tens of milliseconds to rise


def turns(run: Callable[[object], object], states: Sequence) -> Calls:
    """Calls ``run`` on the states in turn; each batch of calls continues where the last one ended."""
    following = itertools.cycle(states)

    def calls(n: int) -> None:
        for state in itertools.islice(following, n):
            run(state)

    return calls


def repeats(run: Callable[[], object]) -> Calls:
    """The same call again and again, with nothing in between: for calls of a microsecond."""

    def calls(n: int) -> None:
        for _ in itertools.repeat(None, n):
            run()

    return calls


def now(device: torch.device) -> float:
    """Seconds, after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def host_sample(calls: Calls, n: int) -> float:
    start = time.perf_counter()
    calls(n)
    return (time.perf_counter() - start) / n


def eager_sample(calls: Calls, n: int) -> float:
    """Wall time on a GPU, from the first call until the last one has finished."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls(n)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / n


def issue_sample(calls: Calls, n: int) -> float:
    """Host time on a GPU: n calls without synchronising, few enough for the driver's queue (1024 launches)."""
    torch.cuda.synchronize()
    sample = host_sample(calls, n)
    torch.cuda.synchronize()
    return sample


def kernel_samples(calls: Calls, n: int) -> list[float]:
    """Seconds of each kernel of n calls, from the profiler: without the gaps between kernels, which in a graph of small
    kernels are as long as the kernels."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        calls(n)
        torch.cuda.synchronize()
    return [e.time_range.elapsed_us() / 1e6 for e in profiler.events() if e.device_type == DeviceType.CUDA]


class Graph:
    """``n`` calls on the states in turn, captured once.

    An output stays alive until its state's next turn: successive calls write different memory too.
    """

    def __init__(self, run: Callable[[object], object], states: Sequence, n: int):
        self.n = n
        self.graph = torch.cuda.CUDAGraph()
        kept = [None] * len(states)
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            for i in range(n):
                kept[i % len(states)] = run(states[i % len(states)])
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def launch(self, runway: torch.Tensor) -> None:
        """Behind a write of ``runway``, which is larger than L2: it flushes the cache, and while it runs the host gets
        ahead, so that no launch latency falls between the two events."""
        runway.zero_()
        self.start.record()
        self.graph.replay()
        self.end.record()

    def sample(self) -> float:
        """Seconds per call of the last launch. Call torch.cuda.synchronize() first."""
        return self.start.elapsed_time(self.end) / 1000 / self.n


def calls_per_sample(seconds_a_call: float, sample_seconds: float, most: int) -> int:
    return max(1, min(most, round(sample_seconds / max(seconds_a_call, 1e-9))))


def interleave(
    calls: dict[str, Calls],
    *,
    seconds: float,
    rounds: tuple[int, int],
    sample_seconds: float = 0.002,
    most_calls: int = 2000,
    sample: Callable[[Calls, int], float] = host_sample,
) -> dict[str, list[float]]:
    """Seconds per call of each provider, one sample per round, after a warm-up of three calls.

    Rounds continue until ``seconds`` have passed, within the two bounds of ``rounds``. Each starts with the next
    provider.
    """
    batch = {}
    for name, run in calls.items():
        run(2)
        batch[name] = calls_per_sample(sample(run, 1), sample_seconds, most_calls)
    samples = {name: [] for name in calls}
    names, stop = list(calls), time.perf_counter() + seconds
    for k in range(rounds[1]):
        if k >= rounds[0] and time.perf_counter() > stop:
            break
        for name in names[k % len(names) :] + names[: k % len(names)]:
            samples[name].append(sample(calls[name], batch[name]))
    return samples


def interleave_graphs(graphs: dict[str, Graph], *, seconds: float, rounds: tuple[int, int]) -> dict[str, list[float]]:
    """The same for captured graphs: a round launches all of them before it reads any event. The warm-up is two rounds,
    and more until an idle GPU has had time to raise its clocks."""
    runway = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    names = list(graphs)

    def launch_all(k: int) -> None:
        for name in names[k % len(names) :] + names[: k % len(names)]:
            graphs[name].launch(runway)
        torch.cuda.synchronize()

    if not graphs:
        return samples
    warm = time.perf_counter() + WARM_UP_SECONDS
    launch_all(0)
    launch_all(1)
    while time.perf_counter() < warm:
        launch_all(0)
    stop = time.perf_counter() + seconds
    for k in range(rounds[1]):
        if k >= rounds[0] and time.perf_counter() > stop:
            break
        launch_all(k)
        for name, graph in graphs.items():
            samples[name].append(graph.sample())
    return samples


def spread(samples: Sequence[float], name: str, scale: float = 1.0, digits: int = 4) -> dict:
    """Median, p20 and p80 of the samples times ``scale``: {name, name_p20, name_p80}."""
    if len(samples) == 1:
        low = high = samples[0]
    else:
        low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
    values = (statistics.median(samples), low, high)
    return {name + end: round(v * scale, digits) for end, v in zip(("", "_p20", "_p80"), values, strict=True)}
