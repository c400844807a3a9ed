"""One module per backend, with a function for each op of ops/schemas.py and

    unavailable() -> str | None: why it cannot be used here, or None.
    DEVICES: the device types it serves, or None for all of them.

registry.py has the table of backends, and chooses one for a call.
"""
