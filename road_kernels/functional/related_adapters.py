"""Other adapters that are the same op: tables for rotate and rotate_batched, so that requests can share a batch.

Each also works on a bank: a leading dimension [A] on every parameter gives tables for rotate_batched.
"""

import torch
from torch import Tensor

from ..ops import checks
from ..python_fallback.tables import arithmetic_dtype
from .rotate import road_apply, road_apply_batched

Tables = tuple[Tensor, Tensor]


def ia3_tables(scale: Tensor) -> Tables:
    """IA3: y = scale * h, feature by feature. scale: [D] or [A, D]; tables of full width, for any group_size.

    Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    arXiv 2205.05638, section 3.3.
    """
    checks.check_float_tensor("scale", scale)
    r1 = scale.to(arithmetic_dtype(scale))
    return r1, torch.zeros_like(r1)


def ssf_tables(scale: Tensor) -> Tables:
    """SSF without its shift: y = scale * h. The op has no shift: add SSF's own, [D], to the result.

    scale: [D] or [A, D], as ia3_tables; SSF puts it after every operation and not only where IA3 does.
    Source: Lian et al., "Scaling & Shifting Your Features", arXiv 2210.08823, equation 3.
    """
    return ia3_tables(scale)


def oft_tables(q: Tensor) -> Tables:
    """OFT with 2x2 blocks: R = (I + Q)(I - Q)^-1 with Q = [[0, -q], [q, 0]], Cayley's rotation by 2 atan(q).

    q: [D/2] or [A, D/2], packed as theta of "road_1"; q = 0 is the identity. Compact tables of pure rotations.
    Source: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv 2306.07280, section 3.
    """
    checks.check_float_tensor("q", q)
    theta = 2 * torch.atan(q.to(arithmetic_dtype(q)))
    return theta.cos(), theta.sin()


def butterfly(
    x: Tensor,
    theta: Tensor,
    alpha: Tensor | None = None,
    adapter_ids: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """A butterfly of Givens rotations: stage s = 0, 1, ... rotates the features 2^s apart, group_size 2^(s + 1).

    log2(D) stages let every feature reach every other with D/2 log2(D) angles: BOFT with 2x2 blocks, GOFT with its
    log2(D) parallel rounds. One rotation kernel per stage.

    Args:
        x: [..., D], D a multiple of 2^S.
        theta: [S, D/2], or [S, A, D/2] with adapter_ids; radians, packed as "road_1" with group_size 2^(s + 1).
        alpha: scales of the shape of theta; None leaves the lengths as they are (orthogonal).
        adapter_ids, backend: as in road_apply_batched.

    Returns:
        z as road_apply; every stage rounds to x's dtype. Errors as in road_apply.

    Sources: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", arXiv 2311.06243;
    Ma et al., "Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation", arXiv 2404.04316.
    """
    checks.check_float_tensor("theta", theta)
    if theta.dim() != (2 if adapter_ids is None else 3):
        wanted = "[S, D/2]" if adapter_ids is None else "[S, A, D/2]"
        raise ValueError(f"theta must be {wanted}, got {list(theta.shape)}")
    if alpha is not None:
        checks.check_float_tensor("alpha", alpha)
    if alpha is not None and alpha.shape != theta.shape:
        raise ValueError(f"alpha must have the shape of theta, {list(theta.shape)}, got {list(alpha.shape)}")
    scales = torch.ones_like(theta[:1]).expand_as(theta) if alpha is None else alpha
    # Stages after the first may overwrite their input, unless autograd needs it. torch.jit.trace checks, without
    # autograd, that it has recorded the same ops.
    inplace = not (torch.is_grad_enabled() or torch.jit.is_tracing())
    for stage, (angle, scale) in enumerate(zip(theta, scales, strict=True)):
        options = {"group_size": 2 ** (stage + 1), "inplace": inplace and stage > 0, "backend": backend}
        if adapter_ids is None:
            x = road_apply(x, angle, scale, **options)
        else:
            x = road_apply_batched(x, angle, scale, adapter_ids, **options)
    return x
