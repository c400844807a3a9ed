"""Where the tests make their tensors, and the backends that serve them there."""

import os

import road_kernels as rk

# "cuda" under make gpu-check.
DEVICE = os.environ.get("ROAD_KERNELS_TEST_DEVICE", "cpu")
NO_BACKEND = "none"  # --backend none: the tests that take no backend


def usable_backends() -> list[str]:
    """Those that serve tensors on DEVICE."""
    rows = rk.backend_info()["backends"].items()
    return [name for name, row in rows if row["usable"] and (row["devices"] == "any" or DEVICE in row["devices"])]
