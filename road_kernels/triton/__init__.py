"""The Triton kernels: the same ops without a compiled extension, on NVIDIA and AMD GPUs.

    ops.py                  the ops: check, allocate, launch
    fused_ops.py            the fused ops likewise
    calls.py                what the calls of all ops share
    prepare.py              the launch of each kernel for given shapes and strides
    prepare_fused.py        ... of each kernel of the fused ops
    launch.py               compiles a kernel once per configuration and launches it
    plan.py                 the rules that give tiles and programs from D and the row count  (imports no Triton)
    layout.py               how the rows of a tensor lie in memory, in plain integers  (imports no Triton)
    kernels/
      pairs.py              the 2x2 formula; loading and storing pairs of features
      rows.py               where rows lie, and which pairs a tile has
      ids.py                which ids are of the bank, and the assertion for those that are not
      coefficients.py       from the parameters to the coefficients of a tile of pairs
      rotate.py             forward and its transpose, one adapter or one per row
      backward.py           parameter gradients: partial sums over the rows
      reduce.py             ... and their reduction in a fixed order
      sort_rows.py          the rows of a mixed batch sorted by adapter
      merge.py              the formula over the rows of a matrix
      tables.py             the coefficients of all adapters
      silu_mul.py           silu(gate) * up of rotated gate and up, and the gradient of x
      silu_mul_backward.py  ... all its gradients
      add_rms_norm.py       rotated x + residual and its RMSNorm
      add_rms_norm_backward.py  ... and the gradient of that sum
      rope.py               rotated q, k and v, and RoPE on q and k
      crossed_rope.py       ... where the two kinds of pairs cross in any way

Nothing here is imported before the first call (road_kernels/backends/triton.py).
"""
