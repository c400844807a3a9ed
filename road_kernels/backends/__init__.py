"""One module per backend, each with the ops of road_kernels._ops (rotate, rotate_, rotate_backward, mix_rows,
mix_rows_)

unavailable() -> str | None: why it cannot be used here, or None.
DEVICES: the device types it serves, or None for all of them.
"""
