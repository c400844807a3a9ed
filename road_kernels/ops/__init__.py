"""The torch ops and everything that holds for all backends.

    extension.py   loads road_kernels._C, or records why it could not
    checks.py      the rules for arguments, and the messages for those that break them
    aliasing.py    which tensors may be written in place
    schemas.py     the ops: schemas and fake kernels
    formula.py     the ops in plain PyTorch
    autograd.py    gradients, around the ops of any backend
    fused_*.py     the same for the ops that join the rotation with what follows it

Nothing here imports backends, functional, serving or integrations.
"""
