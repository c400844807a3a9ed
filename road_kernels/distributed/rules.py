"""How the ops are sharded: for each op the placements over one mesh dimension that need no communication inside of it.

DTensor extends them to all dimensions of a mesh, takes the cheapest for the placements that it is given, and
redistributes the arguments that have others. With x [..., D], p and q [P] or [A, P]:

    x replicated             p, q replicated                            z replicated
    x sharded by rows        p, q replicated, ids by the same rows      z sharded by rows; gp, gq are partial sums
    x sharded by features    p, q sharded by features alike             z, gp, gq sharded by features
    x a partial sum          p, q replicated (R is linear)              z a partial sum

A shard of features must hold whole groups: a pair lies within a group. DTensor's shards have ceil(D / n) features, so
the cut is checked in numbers, for x and the parameters, and a placement that cuts a group or leaves a rank without
features is none of those above.
"""

from collections.abc import Callable
from math import ceil

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor._op_schema import OpSchema, OpStrategy, RuntimeSchemaInfo
from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

from ..ops import schemas
from . import fused_rules

WHOLE, SUM = Replicate(), Partial()
Features = tuple[int, int]  # of a tensor: the dimension with the features, and how long a group is in it


def _rows(x: DTensorSpec, ids: DTensorSpec | None):
    """(placement of x, placement of ids) for every dimension of rows."""
    for dim in range(x.ndim - 1):
        yield Shard(dim), Shard(dim) if ids is not None and dim < ids.ndim else WHOLE


def _last(*specs: DTensorSpec, group_size: int) -> list[Features]:
    """The first of the tensors is as wide as D, and tells how many groups there are."""
    groups = specs[0].shape[-1] // group_size
    return [(spec.ndim - 1, spec.shape[-1] // groups) for spec in specs]


def _rotate(x, p, q, ids, form, group_size, *_):
    extra = [] if ids is None else [WHOLE]
    columns = Shard(x.ndim - 1), Shard(p.ndim - 1)
    placements = [
        ([WHOLE], [WHOLE, WHOLE, WHOLE, *extra]),
        *(([rows], [rows, WHOLE, WHOLE, *([of_ids] if extra else [])]) for rows, of_ids in _rows(x, ids)),
        ([columns[0]], [columns[0], columns[1], columns[1], *extra]),
        ([SUM], [SUM, WHOLE, WHOLE, *extra]),
    ]
    return placements, _last(x, p, q, group_size=group_size)


def _rotate_(*args):
    placements, features = _rotate(*args)
    return [([], inputs) for _, inputs in placements], features


def _rotate_backward(grad, saved, p, q, ids, form, group_size, from_output, output_mask):
    extra = [] if ids is None else [WHOLE]
    columns = Shard(grad.ndim - 1), Shard(p.ndim - 1)
    parameters = [WHOLE, WHOLE, *extra]
    placements = [
        ([WHOLE, WHOLE, WHOLE], [WHOLE, WHOLE, *parameters]),
        *(
            ([rows, SUM, SUM], [rows, rows, WHOLE, WHOLE, *([of_ids] if extra else [])])
            for rows, of_ids in _rows(grad, ids)
        ),
        ([columns[0], columns[1], columns[1]], [columns[0], columns[0], columns[1], columns[1], *extra]),
        # Every gradient is linear in grad, and those of the parameters are linear in saved, which gx does not read.
        ([SUM, SUM, SUM], [SUM, WHOLE, *parameters]),
        ([WHOLE, SUM, SUM], [WHOLE, SUM, *parameters]),
    ]
    if not any(output_mask[1:]):
        placements.append(([SUM, SUM, SUM], [SUM, SUM, *parameters]))
    wanted = [
        ([place if wants else None for place, wants in zip(outputs, output_mask, strict=True)], inputs)
        for outputs, inputs in placements
    ]
    return wanted, _last(grad, saved, p, q, group_size=group_size)


def _merge(w, r1, r2, group_size):
    groups = w.shape[0] // group_size
    features = [(0, group_size), (0, r1.shape[0] // groups), (0, r2.shape[0] // groups)]
    placements = [([of_w], [of_w, WHOLE, WHOLE]) for of_w in (WHOLE, Shard(1), SUM)]
    return [*placements, ([Shard(0)], [Shard(0)] * 3)], features


def _merge_(*args):
    placements, features = _merge(*args)
    return [([], inputs) for _, inputs in placements], features


def _tables(p, q, form, group_size, dtype):
    dims = range(p.ndim)  # the adapters of a bank, and the features
    unit = {"road_1": group_size // 2, "road_2": group_size, "road_4": 2 * group_size}[form]
    return [([of_p] * 2, [of_p] * 2) for of_p in (WHOLE, *map(Shard, dims))], [(p.ndim - 1, unit)] * 2


# Of each op: its rule, how many tensors it returns, and the place of its first argument that is not a tensor.
_RULES = {
    schemas.rotate: (_rotate, 1, 4),
    schemas.rotate_: (_rotate_, 0, 4),
    schemas.rotate_backward: (_rotate_backward, 3, 5),
    schemas.merge: (_merge, 1, 3),
    schemas.merge_: (_merge_, 0, 3),
    schemas.tables: (_tables, 2, 2),
    schemas.rotate_silu_mul: (fused_rules.silu_mul, 1, 4),
    schemas.rotate_silu_mul_backward: (fused_rules.silu_mul_backward, 3, 5),
    schemas.rotate_add_rms_norm: (fused_rules.add_rms_norm, 2, 6),
    schemas.rotate_add_rms_norm_: (fused_rules.in_place(fused_rules.add_rms_norm), 0, 6),
    schemas.add_rms_norm_backward: (fused_rules.add_rms_norm_backward, 1, 4),
    schemas.rotate_rope: (fused_rules.rope, 1, 6),
    schemas.rotate_rope_: (fused_rules.in_place(fused_rules.rope), 0, 6),
}
_WITH_A_MASK = (schemas.rotate_backward, schemas.rotate_silu_mul_backward)


def _groups(spec: DTensorSpec, features: Features) -> list[int] | None:
    """How many groups each shard holds, in order; None if a shard cuts a group or is empty."""
    dim, unit = features
    shards = [spec.shape[dim]]
    for size, placement in zip(spec.mesh.shape, spec.placements, strict=True):
        if placement.is_shard(dim):
            shards = [part for width in shards for part in _chunks(width, size)]
    return None if any(width == 0 or width % unit for width in shards) else [width // unit for width in shards]


def _chunks(width: int, size: int) -> list[int]:
    """The lengths of the shards of Shard over a mesh dimension of this size."""
    chunk = ceil(width / size)
    return [max(0, min(chunk, width - k * chunk)) for k in range(size)]


def _has_whole_groups(specs, features: list[Features]) -> bool:
    cuts = [_groups(spec, of) for spec, of in zip(specs, features, strict=False)]  # ids have no features
    return cuts[0] is not None and all(cut == cuts[0] for cut in cuts)


def _strategy(rule: Callable, returns: int, schema: OpSchema) -> OpStrategy:
    args = [arg.strategies[0].output_spec if isinstance(arg, OpStrategy) else arg for arg in schema.args_schema]
    placements, features = rule(*args)
    strategy = expand_to_full_mesh_op_strategy(
        args[0].mesh, schema, [[*outputs, *inputs] for outputs, inputs in placements], input_index=returns
    )
    strategy.strategies = [s for s in strategy.strategies if _has_whole_groups(s.input_specs, features)]
    if returns == 0:
        # What is written must stay where it is.
        written = [k for k, a in enumerate(schema.op._schema.arguments) if a.alias_info and a.alias_info.is_write]
        strategy.strategies = [
            s for s in strategy.strategies if all(s.input_specs[k].placements == args[k].placements for k in written)
        ]
        if not strategy.strategies:
            raise ValueError(_refusal(schema.op, args[0], features[0]))
    return strategy


def _refusal(op, spec: DTensorSpec, features: Features) -> str:
    return (
        f"{op.name()} cannot write in place into a tensor of shape {list(spec.shape)} placed as "
        f"{list(spec.placements)}, which would have to be redistributed: use inplace=False, or a placement that is "
        f"replicated, a partial sum, sharded by rows, or sharded by features at multiples of {features[1]}"
    )


def register() -> None:
    """Gives the rules to DTensor's dispatcher.

    Through its registry and not through experimental.register_sharding, which caches a decision for all values of the
    arguments in front of the first int (here ``form``, which decides how wide tables are) and has no place to check
    where shards are cut.
    """
    for op, (rule, returns, first_static) in _RULES.items():
        DTensor._op_dispatcher.sharding_propagator.register_op_strategy(
            op,
            lambda schema, rule=rule, returns=returns: _strategy(rule, returns, schema),
            RuntimeSchemaInfo(first_static, needs_pytree=op in _WITH_A_MASK),
        )
