"""The fused ops on every backend against float64."""

import pytest
import torch
from support.expected import arithmetic_of, assert_close, same
from support.fused_cases import MAX_POSITION, OPS, expect, make
from support.problems import DTYPES, make_x

import road_kernels as rk

IDS = torch.tensor([2, -1, 0, 3, 2, -1])
# I of silu_mul, D of add_rms_norm, head_dim of rope; and the group size.
SIZES = {
    "smallest": (2, 2),
    "odd groups": (18, 6),
    "tail": (70, 2),
    "one group": (74, 74),
    "groups of 64": (128, 64),
    "groups of 40": (80, 40),
    "groups of 16": (64, 16),
}


def check(case, dtype, backend, units=6):
    got = case.run(backend=backend)
    for g, want in zip(got, expect(case), strict=True):
        assert g.dtype == dtype
        assert g.is_contiguous()
        assert_close(g, want, arithmetic_of(dtype), units=units)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize(("size", "group_size"), SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("op", OPS)
def test_single(backend, op, size, group_size, form, dtype):
    check(make(op, (3, 2), size, group_size, form=form, dtype=dtype), dtype, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("group_size", [2, 24])
@pytest.mark.parametrize("op", OPS)
def test_batched(backend, op, group_size, form, dtype):
    check(make(op, (6, 3), 48, group_size, form=form, ids=IDS, dtype=dtype), dtype, backend)


@pytest.mark.parametrize("ids", [torch.full((6,), -1), torch.zeros(6, 3, dtype=torch.int32)], ids=["none", "per token"])
@pytest.mark.parametrize("op", OPS)
def test_ids(backend, op, ids):
    check(make(op, (6, 3), 16, 8, ids=ids.to(IDS.device)), torch.float32, backend)


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_parameters_keep_their_own_dtype(backend, op, dtype, param_dtype):
    check(make(op, (6,), 32, 16, ids=IDS, dtype=dtype, param_dtype=param_dtype), dtype, backend)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("op", OPS)
def test_strided_rows(backend, op, batched):
    """x is a slice of columns of a [B, T, D] tensor, which starts anywhere; so is the residual."""
    width = make(op, (1,), 16, 8).x.shape[-1]
    whole = make_x(6, 5, width + 3)
    x = whole[:, 1:4, 3:]
    case = make(op, (6, 3), 16, 8, ids=IDS if batched else None, x=x)
    if op == "add_rms_norm":
        case.args = (make_x(6, 5, width + 3, seed=7)[:, 1:4, 3:], *case.args[1:])
    check(case, torch.float32, backend)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_few_rows(backend, op, rows):
    check(make(op, (rows,), 16, 8), torch.float32, backend)
    check(make(op, (rows,), 16, 8, ids=torch.zeros(rows, dtype=torch.int64)), torch.float32, backend)


@pytest.mark.parametrize("id", [-1, 1], ids=["none", "empty slot"])
@pytest.mark.parametrize("op", OPS)
def test_without_an_adapter_the_neighbour_still_happens(backend, op, id):
    """As with the identity, also where a feature is not finite: its partner must stay what it is."""
    case = make(op, (6, 3), 16, 8, ids=torch.full((6,), id, device=IDS.device))
    case.r1[1], case.r2[1] = 1, 0
    case.x[2, 1, 1] = float("inf")
    got = case.run(backend=backend)
    case.ids = None
    case.r1, case.r2 = torch.ones_like(case.r1[0]), torch.zeros_like(case.r2[0])
    finite = [r for r in range(18) if r != 7]
    for g, want in zip(got, case.run(backend=backend), strict=True):
        assert same(backend, g.reshape(18, -1)[finite], want.reshape(18, -1)[finite])
    row = got[-1].reshape(18, -1)[7]
    if op != "rope":  # z, and s, whose norm is infinite
        assert row[1].isinf() and row[[0, *range(2, 16)]].isfinite().all()
    else:  # features 1 and 9 of the first head
        assert row[[0, *range(2, 9), *range(10, row.numel())]].isfinite().all()


@pytest.mark.parametrize("gate", [-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0])
def test_silu_of_large_gates(backend, gate):
    case = make("silu_mul", (2,), 32, 8)
    case.x = torch.cat((torch.full((2, 32), gate), torch.ones(2, 32)), dim=-1)
    case.r1, case.r2 = torch.ones(32), torch.zeros(32)
    (z,) = case.run(backend=backend)
    want = gate / (1 + torch.exp(torch.tensor(-gate, dtype=torch.float64)))
    torch.testing.assert_close(z.double(), want.expand(2, 32), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e4])
def test_norm_of_small_and_large_rows(backend, scale):
    case = make("add_rms_norm", (4,), 96, 8)
    case.x, case.args = case.x * scale, (case.args[0] * scale, case.args[1])
    check(case, torch.float32, backend)


def test_norm_of_long_rows(backend):
    check(make("add_rms_norm", (3,), 4096, 64, dtype=torch.bfloat16), torch.bfloat16, backend)
    check(make("add_rms_norm", (2,), 8200, 8), torch.float32, backend)


@pytest.mark.parametrize("packs", [31, 32, 33])
def test_norm_of_about_as_many_packs_as_a_warp_has_threads(backend, packs):
    """Packs of eight pairs."""
    case = make("add_rms_norm", (3,), 16 * packs, 16, ids=IDS[:3], dtype=torch.bfloat16)
    check(case, torch.bfloat16, backend)


ROPES = {
    "half of a head": {"rotary_dim": 24},
    "adjacent": {"is_neox": False},
    "adjacent, a quarter": {"is_neox": False, "rotary_dim": 12},
    "two features": {"rotary_dim": 2},
    "an odd half": {"rotary_dim": 26},
    "positions of a request": {"positions": torch.tensor([[3], [0], [39], [7], [7], [12]])},
    "positions for all": {"positions": torch.tensor([5, 39, 0])},
    "one position": {"positions": torch.tensor(11)},
    "of a leading 1": {"positions": torch.tensor([[5, 39, 0]], dtype=torch.int32)},
    "float32 cache": {"cache_dtype": torch.float32},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group_size", [2, 6, 16, 48])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_ropes(backend, rope, group_size, dtype):
    """RoPE's pairs and the rotation's cross in every way."""
    rope = {k: v.to(IDS.device) if isinstance(v, torch.Tensor) else v for k, v in rope.items()}
    check(make("rope", (6, 3), 48, group_size, ids=IDS, dtype=dtype, **rope), dtype, backend)


@pytest.mark.parametrize("cache_dtype", [None, torch.float32], ids=["cache of its dtype", "float32 cache"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("group_size", [2, 8, 64], ids=["adjacent", "groups of 8", "a group is a half"])
def test_rope_of_heads_as_models_have_them(backend, group_size, form, dtype, cache_dtype):
    """Of 128 features: whole vectors of pairs that are closed under both; in place, too."""
    case = make("rope", (6,), 128, group_size, form=form, ids=IDS, dtype=dtype, cache_dtype=cache_dtype or dtype)
    check(case, dtype, backend)
    want = case.run(backend=backend)
    assert all(map(torch.equal, case.run(backend=backend, inplace=True), want))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group_size", [2, 64])
@pytest.mark.parametrize(
    ("before", "after"), [(8, 8), (4, 4), (1, 7), (0, 1)], ids=["16 bytes", "8", "start", "stride"]
)
def test_rope_by_a_slice_of_a_cache(backend, before, after, group_size, dtype):
    """In bfloat16, cos and sin are aligned to 16 bytes, to 8, or to neither: by where they start, or their stride."""
    case = make("rope", (6, 3), 128, group_size, ids=IDS, dtype=dtype)
    positions, cache = case.args
    case.args = positions, torch.nn.functional.pad(cache, (before, after))[:, before : before + 128]
    assert not case.args[1].is_contiguous()
    check(case, dtype, backend)


@pytest.mark.asserts_on_device
@pytest.mark.parametrize("position", [-1, MAX_POSITION, 2**31, 2**40])
@pytest.mark.parametrize("inplace", [False, True])
def test_positions_out_of_the_cache_are_refused(backend, position, inplace):
    case = make("rope", (5,), 16, 8, positions=torch.tensor([0, 1, 2, position, 3]))
    before = case.x.clone()
    with pytest.raises(IndexError):
        case.run(backend=backend, inplace=inplace)
    if backend != "cuda_shim":  # where one thread of a kernel asserts, others have written
        assert torch.equal(case.x, before)


@pytest.mark.asserts_on_device
@pytest.mark.parametrize("op", OPS)
def test_ids_outside_the_bank_are_refused(backend, op):
    for bad in (-2, 4, 2**32):
        with pytest.raises(IndexError):
            make(op, (6,), 16, 8, ids=torch.tensor([0, 1, 2, bad, 3, -1])).run(backend=backend)


@pytest.mark.parametrize("op", OPS)
def test_two_calls_are_bitwise_equal_and_rows_independent(backend, op):
    case = make(op, (40,), 64, 16, ids=torch.randint(-1, 4, (40,)), dtype=torch.bfloat16)
    first, second = case.run(backend=backend), case.run(backend=backend)
    part = make(op, (40,), 64, 16, ids=case.ids, dtype=torch.bfloat16)
    at = slice(11, 14)
    part.x, part.ids = case.x[at], case.ids[at]
    if op == "add_rms_norm":
        part.args = case.args[0][at], case.args[1]
    if op == "rope":
        part.args = case.args[0][at], case.args[1]
    for a, b, c in zip(first, second, part.run(backend=backend), strict=True):
        assert torch.equal(a, b)
        assert same(backend, a[at], c)


@pytest.mark.parametrize("op", OPS)
def test_no_further_from_float64_than_the_pair(backend, op):
    """Root mean square error of bfloat16 results: one rounding against two."""
    case = make(op, (64,), 128, 64, dtype=torch.bfloat16)
    want = [torch.from_numpy(r.value) for r in expect(case)]
    rms = lambda result: [(g.double().cpu() - w).square().mean().sqrt() for g, w in zip(result, want, strict=True)]  # noqa: E731
    fused = rms(case.run(backend=backend))
    h = rk.rotate(case.x, case.r1, case.r2, group_size=64, backend=backend)
    case.x, case.r1, case.r2 = h, torch.ones_like(case.r1), torch.zeros_like(case.r2)
    for one, two in zip(fused, rms(case.run(backend=backend)), strict=True):
        assert one < two
