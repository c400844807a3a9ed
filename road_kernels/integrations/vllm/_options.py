"""What a server may be told of RoAd: --additional-config '{"road_kernels": {"lora": false, "group_sizes": [32]}}'."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

KEY = "road_kernels"


@dataclass(frozen=True)
class Options:
    """
    lora: serve LoRA adapters too. False: layers run their base alone and no memory is kept for LoRA.
    group_sizes: those that adapters may have; one rotation per layer for each. None: any, a rotation for each that is
        in the batch. Where the model is compiled or captured, the calls are fixed from the start.
    """

    lora: bool = True
    group_sizes: tuple[int, ...] | None = None


def of_config(vllm_config) -> Options:
    """Raises ValueError for options that there are not, or of the wrong kind."""
    given = vllm_config.additional_config
    given = given.get(KEY, {}) if isinstance(given, dict) else {}
    if not isinstance(given, dict) or not given.keys() <= {"lora", "group_sizes"}:
        raise ValueError(f"{KEY} in additional_config must hold lora and group_sizes only, got {given!r}")
    lora, sizes = given.get("lora", True), given.get("group_sizes")
    if not isinstance(lora, bool):
        raise ValueError(f"lora of {KEY} in additional_config must be true or false, got {lora!r}")
    if sizes is None:
        return Options(lora, (64,) if _is_fixed(vllm_config) else None)
    if not isinstance(sizes, (list, tuple)) or not sizes or not all(map(_is_group_size, sizes)):
        raise ValueError(f"group_sizes of {KEY} in additional_config must list even ints above 0, got {sizes!r}")
    return Options(lora, tuple(sorted(set(sizes))))


def _is_group_size(size) -> bool:
    return type(size) is int and size >= 2 and size % 2 == 0


def _is_fixed(vllm_config) -> bool:
    """Whether a step runs what was traced, or captured in a CUDA graph, before any adapter was there."""
    compilation = vllm_config.compilation_config
    modes = [compilation.mode]
    if vllm_config.device_config.device_type == "cuda":
        modes.append(compilation.cudagraph_mode)
    return any(mode is not None and mode.name != "NONE" for mode in modes)


_current = Options()


@contextmanager
def used(options: Options) -> Iterator[None]:
    """For the layers that are made inside of the block, whose constructors get no configuration."""
    global _current
    before, _current = _current, options
    try:
        yield
    finally:
        _current = before


def current() -> Options:
    return _current
