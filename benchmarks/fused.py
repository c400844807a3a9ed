"""The rotation inside what follows it: SiLU times up, add and RMSNorm, RoPE, with an adapter per row. Against the same
kernel without an adapter (which the rotation should not cost more than), the two one after the other, torch.compile.

python -m benchmarks.fused [--device cpu|cuda] [--quick | --gpu-check | --full] [--threads N] [--seconds S]
"""

from .fused_cases import OPS, build
from .harness.sweep import arguments, sweep

BASE = {"rows": 2048, "dim": 4096, "dtype": "bfloat16", "adapters": 8}


def grid(name: str, device: str) -> list[dict]:
    """Points with ``compiled`` also time torch.compile, which costs seconds of compilation each."""
    if name == "quick":
        return [BASE | {"op": op, "rows": 16, "dim": 1024} for op in OPS]
    rows = {"default": (8, 2048), "gpu-check": (8, 4096), "full": (1, 8, 64, 512, 4096, 16384)}[name]
    dims = (4096,) if name == "default" else (4096, 8192)
    dtypes = ("bfloat16",) if name == "gpu-check" else ("bfloat16", "float32")
    return [
        {"op": op} | BASE | {"rows": r, "dim": d, "dtype": dtype, "compiled": d == 4096 and dtype == "bfloat16"}
        for op in OPS
        for dtype in dtypes
        for d in dims
        for r in rows
    ]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, argv, "python -m benchmarks.fused", gpu_check_seconds=60)
    sweep("fused", grid(options.grid, options.device), build, options)


if __name__ == "__main__":
    main()
