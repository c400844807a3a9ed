"""python -m benchmarks [--device ...] [--quick | --gpu-check | --full] ...: runs every sweep, one after the other."""

import importlib
import sys
import traceback

SWEEPS = ("single_op", "fused", "layer", "dispatch")


def main(argv: list[str] | None = None) -> int:
    failed = []
    for name in SWEEPS:
        try:
            importlib.import_module(f"{__package__}.{name}").main(argv)
        except Exception:  # the others are still measured; the exit status reports it
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
