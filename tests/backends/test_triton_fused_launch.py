"""What the fused ops launch on the Triton backend and how often it compiles."""

import pytest
import torch
from support.fused_cases import make
from support.triton_interpreter import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("Triton's interpreter takes the compiler's place in this process", allow_module_level=True)

from support.triton_cases import FusedCase
from support.triton_driver import named, recorder  # noqa: F401

from road_kernels.triton import fused_ops, prepare_fused

pytestmark = pytest.mark.cpu_only
BF16 = torch.bfloat16
KERNELS = {"silu_mul": "silu_mul_kernel", "add_rms_norm": "add_rms_norm_kernel", "rope": "rope_kernel"}


def make_call(op, rows=8, adapters=None, **keywords):
    ids = None if adapters is None else torch.arange(rows) % adapters
    return make(op, (rows,), 64, 32, ids=ids, adapters=adapters or 1, dtype=BF16, **keywords)


def arguments(case):
    k = case.keywords
    tail = {
        "silu_mul": ("group_size",),
        "add_rms_norm": ("eps", "group_size"),
        "rope": ("num_heads", "num_kv_heads", "head_dim", "is_neox", "group_size"),
    }[case.op]
    return case.x, *case.args, case.r1, case.r2, case.ids, *(k[name] for name in tail)


def run(case, inplace=False):
    return getattr(fused_ops, f"rotate_{case.op}{'_' if inplace else ''}")(*arguments(case))


CALLS = [("silu_mul", False), *((op, inplace) for op in ("add_rms_norm", "rope") for inplace in (False, True))]


@pytest.mark.parametrize(("op", "inplace"), CALLS)
def test_a_call_is_one_launch_and_an_equal_one_is_not_checked_again(recorder, monkeypatch, op, inplace):  # noqa: F811
    """The second differs in the addresses, and in the values of ids."""
    first = make_call(op, adapters=3)
    run(first, inplace)
    monkeypatch.setattr(fused_ops, "arguments", None)
    monkeypatch.setattr(prepare_fused, op, None)
    again = make_call(op, adapters=3)
    again.ids = again.ids.flip(0)
    z = run(again, inplace)
    assert [name for name, *_ in recorder.launches] == [KERNELS[op]] * 2
    written = (again.x, again.args[0])[: 2 if op == "add_rms_norm" else 1] if inplace else z if op != "rope" else (z,)
    written = written if isinstance(written, tuple) else (written,)
    outputs = {"silu_mul": ("out",), "add_rms_norm": ("y", "s"), "rope": ("z",)}[op]
    for launch, case in ((0, first), (1, again)):
        _, values = named(recorder, launch)
        assert (values["x"], values["r1"], values["ids"]) == tuple(t.data_ptr() for t in (case.x, case.r1, case.ids))
    assert [values[name] for name in outputs] == [t.data_ptr() for t in written]
    assert all(t._version == inplace for t in written)


def test_the_gradient_of_a_norm_is_one_launch(recorder, monkeypatch):  # noqa: F811
    """An equal one is not checked again; one of another eps is; a layout that no kernel walks is copied every time."""
    gy, gs, s = (torch.zeros(8, 64, dtype=BF16) for _ in range(3))
    weight = torch.ones(64)
    run = lambda *t, eps=1e-6: fused_ops.add_rms_norm_backward(*t, weight, eps)  # noqa: E731
    run(gy, gs, s)
    with monkeypatch.context() as m:
        m.setattr(prepare_fused, "add_rms_norm_backward", None)
        out = run(gs, gy, s)
        with pytest.raises(TypeError):
            run(gy, gs, s, eps=1e-5)
    assert [name for name, *_ in recorder.launches] == ["add_rms_norm_backward_kernel"] * 2
    _, values = named(recorder)
    assert [values[k] for k in ("gy", "gs", "s", "weight", "out")] == [t.data_ptr() for t in (gs, gy, s, weight, out)]
    columns = torch.zeros(64, 8, dtype=BF16).t()
    for _ in range(2):
        run(columns, gs, s)
        assert named(recorder)[1]["gy"] != columns.data_ptr()
    run(torch.ones((), dtype=BF16).expand(8, 64), gs, s)  # the gradient of a sum: one row of it
    assert named(recorder)[1]["gy_stride"] == 0
    launched = len(recorder.launches)
    assert run(*(t[:0] for t in (gy, gs, s))).shape == (0, 64) and len(recorder.launches) == launched


@pytest.mark.parametrize("op", KERNELS)
def test_a_call_that_differs_is_checked(recorder, op):  # noqa: F811
    run(make_call(op, adapters=3))
    changes = [{"r1": torch.ones(3, 7)}, {"r2": torch.ones(2, 64)}, {"ids": torch.zeros(9, dtype=torch.int64)}]
    for change in changes:
        case = make_call(op, adapters=3)
        vars(case).update(change)
        with pytest.raises(ValueError):
            run(case)
    case = make_call(op, adapters=3)
    case.keywords["group_size"] = 48
    with pytest.raises(ValueError):
        run(case)
    assert len(recorder.launches) == 1


@pytest.mark.parametrize("op", KERNELS)
def test_another_alignment_or_dtype_is_compiled_for(recorder, op):  # noqa: F811
    run(make_call(op))
    case = make_call(op)
    case.x = torch.zeros(case.x.numel() + 1, dtype=BF16)[1:].view(case.x.shape)
    run(case)
    case = make_call(op)
    case.r1 = torch.zeros(case.r1.numel() + 1)[1:]
    run(case)
    run(make_call(op, param_dtype=BF16))
    assert recorder.loaded == [KERNELS[op]] * 4


def test_nothing_is_recompiled_for_another_number_of_rows_or_adapters(on_target):
    """A norm has one configuration, from the width of its rows; the others one for few rows, some, and many."""
    on_target("sm_90")
    for op, count in (("silu_mul", 3), ("add_rms_norm", 1), ("rope", 3)):
        configurations = set()
        for rows in (1, 7, 16, 33, 500, 1000, 4096, 70_000):
            for adapters in (1, 2, 17):
                launch, _ = FusedCase(op, batched=True, rows=rows, adapters=adapters).launches()[op]
                constants = sum(p.is_constexpr for p in launch.kernel.params)
                configurations.add((launch.num_warps, *launch.tail[-constants:]))
        assert len(configurations) == count, configurations


def test_only_what_is_asked_for_is_launched(recorder):  # noqa: F811
    def kernels(mask, adapters=None, rows=8):
        recorder.launches.clear()
        case = make_call("silu_mul", rows, adapters)
        x, *rest = arguments(case)
        grads = fused_ops.rotate_silu_mul_backward(x[:, :64], x, *rest, mask)
        assert [g is not None for g in grads] == mask
        return [name for name, *_ in recorder.launches]

    assert kernels([True, False, False], adapters=3) == ["silu_mul_kernel"]
    assert named(recorder)[1]["GRADIENT"]
    both = ["silu_mul_backward_kernel", "reduce_kernel"]
    assert kernels([False, True, False]) == both
    assert not named(recorder, 0)[1]["NEED_GX"] and not named(recorder, 1)[1]["NEED_Q"]
    assert kernels([True, True, True], adapters=3) == ["sort_few_kernel", *both]
    assert kernels([False, False, False]) == []
    assert kernels([True, True, True], rows=0) == ["reduce_kernel"]  # writes zeros
    for op in KERNELS:
        recorder.launches.clear()
        run(make_call(op, rows=0))
        assert recorder.launches == []


ROPES = {  # head_dim, rotary_dim, group_size, is_neox: whether a lane has all that is mixed, and of two pairs
    (128, 128, 64, True): (True, True),
    (64, 64, 32, True): (True, True),
    (64, 64, 2, True): (True, True),
    (64, 64, 64, True): (True, False),
    (64, 32, 32, True): (True, False),
    (64, 32, 2, False): (True, False),
    (96, 96, 32, True): (False, False),
    (64, 32, 16, True): (False, False),
    (64, 64, 4, False): (False, False),
}


@pytest.mark.parametrize(("shape", "how"), ROPES.items(), ids=str)
def test_which_kernel_a_rope_takes(recorder, shape, how):  # noqa: F811
    head_dim, rotary_dim, group_size, is_neox = shape
    case = make("rope", (4,), head_dim, group_size, rotary_dim=rotary_dim, is_neox=is_neox, dtype=BF16)
    run(case)
    name, *_ = recorder.launches[-1]
    assert name == ("rope_kernel" if how[0] else "crossed_rope_kernel")
    assert not how[0] or named(recorder)[1]["TWO_PAIRS"] == how[1]


def test_positions_are_broadcast_without_a_copy(recorder):  # noqa: F811
    """Those of a model's forward: [1, T], [T] or [B, 1] for qkv [B, T, D]."""
    for positions in (torch.arange(6)[None], torch.arange(6), torch.tensor([[3], [5], [7], [9]]), torch.tensor(4)):
        case = make("rope", (4, 6), 64, 32, dtype=BF16, positions=positions)
        run(case)
        assert named(recorder)[1]["positions"] == positions.data_ptr()


def test_grids_have_one_dimension(on_target):
    """The other two are limited to 65535 programs."""
    on_target("sm_90")
    cases = [FusedCase(op, rows=300_000, batched=True) for op in KERNELS]
    cases.append(FusedCase("rope", dim=4608, head_dim=96, group_size=32, rows=300_000))
    for case in cases:
        for name, (launch, _) in case.launches().items():
            assert launch.grid[1:] == (1, 1)
            assert launch.grid[0] > 65535 or name in ("backward", "reduce")
