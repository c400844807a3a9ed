"""Builds the shim ahead of the tests, with sanitizers if ROAD_SHIM_SANITIZE=1."""

from support import cuda_shim

if reason := cuda_shim.unavailable():
    print(f"not built: {reason}")
else:
    print(f"built {cuda_shim.build().__file__}")
