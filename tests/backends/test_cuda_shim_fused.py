"""The CUDA kernels of the fused ops on the host: how many they are, waiting for inputs, and every width of loads."""

import pytest
import torch
from support import cuda_shim
from support.cuda_shim import NotYetWritten
from support.fused_cases import MAX_POSITION, OPS, make
from support.problems import make_x

pytestmark = [pytest.mark.backend("cuda_shim"), pytest.mark.cpu_only]
if reason := cuda_shim.unavailable():
    pytest.skip(reason, allow_module_level=True)

KIND = {"backend": "cuda_shim"}
GROUPS = {"halves": 32, "adjacent": 2, "narrow halves": 8, "odd halves": 6}


def ids_of(rows: int) -> torch.Tensor:
    return (torch.arange(rows) * 7 + 1) % 5 - 1


def launches(run) -> int:
    before = cuda_shim.build().launches()
    run()
    return cuda_shim.build().launches() - before


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("op", OPS)
def test_one_launch(op, batched):
    """All gradients take two, after one that sorts the ids of a mixed batch; that of x alone needs neither."""
    case = make(op, (70,), 96, 32, ids=ids_of(70) if batched else None, dtype=torch.bfloat16)
    for inplace in (False, True)[: 1 + (op != "silu_mul")]:
        assert launches(lambda inplace=inplace: case.run(**KIND, **({"inplace": True} if inplace else {}))) == 1
    if op == "silu_mul":
        backward, args = cuda_shim.build().rotate_silu_mul_backward, (case.x, case.r1, case.r2, case.ids, 32)
        for mask, count in (([True, False, False], 1), ([True] * 3, 2 + batched), ([False, True, False], 2 + batched)):
            assert launches(lambda mask=mask: backward(make_x(70, 96, dtype=torch.bfloat16), *args, mask)) == count
    if op == "add_rms_norm":
        assert launches(lambda: cuda_shim.build().add_rms_norm_backward(*norm_gradients(70, 96), 1e-6)) == 1


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("op", ["add_rms_norm", "rope"])
def test_one_launch_of_a_gradient_is_the_neighbours(op, batched):
    """Then those of rotate_backward: one for x alone, otherwise two, after one that sorts the ids of a mixed batch."""
    case = make(op, (70,), 96, 32, ids=ids_of(70) if batched else None, dtype=torch.bfloat16)
    for tables in (False, True):
        leaves = [t.detach().requires_grad_() for t in (case.x, case.r1, case.r2)[: 3 if tables else 1]]
        outputs = case.run_on(leaves[0], *case.args, *(leaves[1:] or (case.r1, case.r2)), **KIND)
        grads = [torch.ones_like(t) for t in outputs]
        run = lambda: torch.autograd.grad(outputs, leaves, grads)  # noqa: E731, B023
        assert launches(run) == 1 + (2 + batched if tables else 1)


def norm_gradients(rows, dim, dtype=torch.bfloat16):
    return *(make_x(rows, dim, dtype=dtype, seed=seed) for seed in (1, 2, 3)), make_x(dim, seed=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [24, 96, 1536, 12288, 9001])
def test_the_gradient_of_a_norm_does_not_depend_on_where_its_row_lies(dim, dtype):
    """Rows shorter than a warp, than a block, and longer; also in rows that no 16 bytes divide."""
    backward, args = cuda_shim.build().add_rms_norm_backward, norm_gradients(5, dim, dtype)
    want = backward(*args, 1e-6)
    around = torch.zeros(5, dim + 3, dtype=dtype)
    for k in range(3):
        moved = list(args)
        moved[k] = around.clone()[:, 1:-2].copy_(moved[k])
        assert torch.equal(backward(*moved, 1e-6), want)
    weight = torch.cat((torch.zeros(1), args[3]))[1:]
    assert torch.equal(backward(*args[:3], weight, 1e-6), want)
    assert torch.equal(backward(*(t[1:2] for t in args[:3]), weight, 1e-6), want[1:2])


@pytest.mark.parametrize("dim", [96, 70])
def test_the_gradient_of_a_norm_reads_nothing_before_the_wait(dim):
    args = norm_gradients(70, dim)
    want = cuda_shim.build().add_rms_norm_backward(*args, 1e-6)
    pending = NotYetWritten(*args)
    got = cuda_shim.build().add_rms_norm_backward(*args, 1e-6)
    assert pending.written and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("group_size", GROUPS.values(), ids=GROUPS.keys())
def test_the_gradient_of_x_is_the_same_alone(group_size, form, dtype):
    case = make("silu_mul", (70,), 96, group_size, form=form, ids=ids_of(70), dtype=dtype)
    gz, args = make_x(70, 96, dtype=dtype, seed=3), (case.x, case.r1, case.r2, case.ids, group_size)
    alone, beside = (
        cuda_shim.build().rotate_silu_mul_backward(gz, *args, mask)[0] for mask in ([True, False, False], [True] * 3)
    )
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("group_size", [32, 6], ids=["aligned", "one pair at a time"])
@pytest.mark.parametrize("op", OPS)
def test_nothing_is_read_before_the_wait(op, group_size, batched):
    case = make(op, (70,), 96, group_size, ids=ids_of(70) if batched else None, dtype=torch.bfloat16)
    want = case.run(**KIND)
    read = [case.x, *case.args, case.r1, case.r2, *([case.ids] if batched else [])]
    for inplace in (False, True)[: 1 + (op != "silu_mul")]:
        pending = NotYetWritten(*read)
        got = case.run(**KIND, **({"inplace": True} if inplace else {}))
        assert pending.written and all(map(torch.equal, got, want))


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("mask", [[True, True, True], [False, True, True], [True, False, False]], ids=str)
def test_the_backward_reads_nothing_before_the_wait(mask, batched):
    case = make("silu_mul", (70,), 96, 32, ids=ids_of(70) if batched else None, dtype=torch.bfloat16)
    gz = make_x(70, 96, dtype=torch.bfloat16, seed=3)
    args = gz, case.x, case.r1, case.r2, case.ids, 32, mask
    want = cuda_shim.build().rotate_silu_mul_backward(*args)
    pending = NotYetWritten(*(t for t in args if isinstance(t, torch.Tensor)))
    got = cuda_shim.build().rotate_silu_mul_backward(*args)
    assert pending.written and all(g is w is None or torch.equal(g, w) for g, w in zip(got, want, strict=True))


def rows_of(case, part: slice):
    """The same call for some of its rows."""
    x, *args = case.x[part], *(t[part] if t.shape[:1] == case.x.shape[:1] else t for t in case.args)
    ids, case.ids = case.ids, case.ids[part]
    try:
        return case.run_on(x, *args, case.r1, case.r2, **KIND)
    finally:
        case.ids = ids


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("group_size", [64, 2])
@pytest.mark.parametrize("op", ["silu_mul", "rope"])
def test_many_rows_are_what_few_are(op, group_size, form, param_dtype):
    """More than ROAD_FEW_BYTES: 16 bytes a thread instead of 8."""
    size, rows = {"silu_mul": (1024, 1100), "rope": (128, 2500)}[op]
    case = make(
        op, (rows,), size, group_size, form=form, ids=ids_of(rows), dtype=torch.bfloat16, param_dtype=param_dtype
    )
    assert case.x.nbytes > 4 << 20
    (z,) = case.run(**KIND)
    for part in (slice(0, 40), slice(rows - 40, rows)):
        assert torch.equal(z[part], rows_of(case, part)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["table", "table_half"])
@pytest.mark.parametrize("group_size", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("dim", [96, 1536, 12288])
def test_a_norm_does_not_depend_on_where_its_row_lies(dim, group_size, form, dtype):
    """Squares are added in the order of features, whether they are loaded 16 bytes or one element at a time."""
    case = make("add_rms_norm", (5,), dim, group_size, form=form, ids=ids_of(5), dtype=dtype)
    want = case.run(**KIND)
    around = torch.zeros(5, dim + 3, dtype=dtype)
    for x, residual in ((1, 0), (0, 1), (1, 1)):
        moved = [t.clone() for t in (case.x, case.args[0])]
        for k, move in enumerate((x, residual)):
            if move:
                moved[k] = around.clone()[:, 1:-2].copy_(moved[k])
        assert all(map(torch.equal, case.run_on(*moved, case.args[1], case.r1, case.r2, **KIND), want))


@pytest.mark.parametrize("packs", [1023, 1024, 1025])
def test_norm_of_about_as_many_packs_as_a_block_can_have_threads(packs):
    """Packs of four pairs, up to 1024 with a thread each."""
    case = make("add_rms_norm", (3,), 8 * packs, 8, ids=torch.tensor([1, -1, 0]))
    torch.testing.assert_close(case.run(**KIND), case.run(backend="python"))


@pytest.mark.parametrize("is_neox", [False, True])
def test_heads_too_long_for_a_block_in_place(is_neox):
    """In place, where each thread needs what others write, a block has a thread for every item of a head."""
    case = make("rope", (2,), 2400, 800, is_neox=is_neox, rotary_dim=2000, adapters=3, ids=torch.tensor([1, -1]))
    want = case.run(**KIND)
    assert case.run(**KIND, inplace=True)[0] is case.x
    assert torch.equal(case.x, want[0])


@pytest.mark.parametrize("op", OPS)
def test_assertions_name_what_is_wrong(op):
    case = make(op, (4,), 16, 8, ids=torch.tensor([0, -1, 4, 1]))
    with pytest.raises(IndexError, match=r"device-side assertion.*adapter_ids holds an id outside"):
        case.run(**KIND)
    if op == "rope":
        case = make(op, (4,), 16, 8, positions=torch.tensor([0, 1, MAX_POSITION, 2]))
        with pytest.raises(IndexError, match=r"device-side assertion.*positions holds one outside cos_sin_cache"):
            case.run(**KIND)
