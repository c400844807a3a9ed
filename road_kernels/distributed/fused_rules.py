"""How the fused ops are sharded: by rows, with everything of a row on one rank. See rules.py.

    x replicated            everything replicated                     results replicated
    x sharded by rows       residual, positions, ids by the same      results sharded by rows; gr1, gr2 are partial sums
    qkv a partial sum       the rest replicated (RoPE is linear too)  z a partial sum

Features are not sharded: gate and up, q, k and v lie side by side in a row, and a norm needs all of it.
"""

from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec

WHOLE, SUM = Replicate(), Partial()


def _of_ids(ids: DTensorSpec | None, dim: int) -> list:
    return [] if ids is None else [Shard(dim) if dim < ids.ndim else WHOLE]


def _none(ids: DTensorSpec | None) -> list:
    return [] if ids is None else [WHOLE]


def _by_rows(x: DTensorSpec):
    return range(x.ndim - 1)


def _features(group_size: int, *specs: DTensorSpec):
    groups = specs[0].shape[-1] // group_size
    return [(spec.ndim - 1, spec.shape[-1] // groups) for spec in specs]


def silu_mul(x, r1, r2, ids, group_size):
    placements = [([WHOLE], [WHOLE, WHOLE, WHOLE, *_none(ids)])]
    placements += [([Shard(d)], [Shard(d), WHOLE, WHOLE, *_of_ids(ids, d)]) for d in _by_rows(x)]
    return placements, _features(group_size, x, r1, r2)


def silu_mul_backward(grad, x, r1, r2, ids, group_size, output_mask):
    tables = [WHOLE, WHOLE]
    placements = [
        ([WHOLE] * 3, [WHOLE, WHOLE, *tables, *_none(ids)]),
        ([SUM] * 3, [SUM, WHOLE, *tables, *_none(ids)]),  # linear in grad
        *(([Shard(d), SUM, SUM], [Shard(d), Shard(d), *tables, *_of_ids(ids, d)]) for d in _by_rows(x)),
    ]
    wanted = [
        ([place if wants else None for place, wants in zip(outputs, output_mask, strict=True)], inputs)
        for outputs, inputs in placements
    ]
    groups = x.shape[-1] // group_size
    return wanted, [(grad.ndim - 1, grad.shape[-1] // groups), *_features(group_size, x, r1, r2)]


def add_rms_norm(x, residual, weight, r1, r2, ids, eps, group_size):
    parameters = [WHOLE, WHOLE, WHOLE]
    placements = [([WHOLE, WHOLE], [WHOLE, WHOLE, *parameters, *_none(ids)])]
    placements += [([Shard(d)] * 2, [Shard(d), Shard(d), *parameters, *_of_ids(ids, d)]) for d in _by_rows(x)]
    return placements, _features(group_size, x, residual, weight, r1, r2)


def add_rms_norm_backward(gy, gs, s, weight, eps):
    placements = [([place], [place, place, place, WHOLE]) for place in (WHOLE, *map(Shard, _by_rows(s)))]
    placements.append(([SUM], [SUM, SUM, WHOLE, WHOLE]))  # linear in gy and gs
    return placements, [(s.ndim - 1, s.shape[-1])] * 3


def rope(qkv, positions, cache, r1, r2, ids, num_heads, num_kv_heads, head_dim, is_neox, group_size):
    def of_positions(dim):
        own = dim - (qkv.ndim - 1 - positions.ndim)  # positions broadcast from the right
        return Shard(own) if own >= 0 and positions.shape[own] == qkv.shape[dim] else WHOLE

    rest = [WHOLE, WHOLE, WHOLE]
    placements = [
        ([WHOLE], [WHOLE, WHOLE, *rest, *_none(ids)]),
        ([SUM], [SUM, WHOLE, *rest, *_none(ids)]),
        *(([Shard(d)], [Shard(d), of_positions(d), *rest, *_of_ids(ids, d)]) for d in _by_rows(qkv)),
    ]
    # What stands between qkv and its tables has no groups: they are replicated, which cuts nothing.
    return placements, _features(group_size, qkv)


def in_place(rule):
    """The rule of the op that writes and returns nothing."""

    def of(*args):
        placements, features = rule(*args)
        return [([], inputs) for _, inputs in placements], features

    return of
