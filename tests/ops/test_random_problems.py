"""Random shapes, strides, dtypes and ids (hypothesis): the oracle's numbers, and nothing written outside."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import DEVICE
from support.expected import arithmetic_of, assert_close, expect_backward, expect_forward
from support.problems import DTYPES, FORMS, apply, make_params, make_x


@st.composite
def problems(draw):
    group_size = 2 * draw(st.integers(1, 20))
    dim = group_size * draw(st.integers(1, 4))
    leading = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    batched = draw(st.booleans())
    prefix = draw(st.integers(0, len(leading)))
    adapters = draw(st.integers(1, 4))
    return {
        "group_size": group_size,
        "dim": dim,
        "leading": leading,
        "dtype": draw(st.sampled_from(DTYPES)),
        "param_dtype": draw(st.sampled_from(DTYPES)),
        "form": draw(st.sampled_from(FORMS)),
        "adapters": adapters if batched else None,
        "ids": torch.randint(-1, adapters, leading[:prefix]) if batched else None,
        "id_dtype": draw(st.sampled_from([torch.int32, torch.int64])),
        "offset": draw(st.integers(0, 9)),
        "gap": draw(st.integers(0, 9)),
        "order": draw(st.permutations(range(len(leading)))),
        "inplace": draw(st.booleans()),
    }


def strided(problem):
    """A tensor inside a buffer of canaries, with permuted leading dimensions and a gap after each row."""
    leading, dim, order = problem["leading"], problem["dim"], problem["order"]
    rows = torch.Size([leading[d] for d in order]).numel()
    buffer = torch.full((problem["offset"] + rows * (dim + problem["gap"]),), 7.0, dtype=problem["dtype"])

    def view(of):
        flat = of[problem["offset"] :].view(*(leading[d] for d in order), dim + problem["gap"])[..., :dim]
        return flat.permute(*(order.index(d) for d in range(len(leading))), len(leading))

    view(buffer).copy_(make_x(*leading, dim, dtype=problem["dtype"]))
    outside = torch.ones_like(buffer, dtype=torch.bool)
    view(outside).fill_(False)
    return buffer, view(buffer), outside


@settings(
    max_examples=150 if DEVICE == "cpu" else 50,  # on a GPU Triton recompiles for most of them
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(problems())
def test_forward_and_backward(backend, problem):
    buffer, x, outside = strided(problem)
    form, group_size, dtype = problem["form"], problem["group_size"], problem["dtype"]
    p, q = make_params(form, problem["adapters"], problem["dim"], dtype=problem["param_dtype"])
    ids = None if problem["ids"] is None else problem["ids"].to(problem["id_dtype"])
    kw = {"group_size": group_size, "backend": backend}
    want = expect_forward(x, p, q, form, group_size, ids)

    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, p, q)]
    z = apply(*leaves, form, ids, **kw)
    assert_close(z, want, arithmetic_of(dtype), units=6)
    gz = make_x(*x.shape, dtype=dtype, seed=9)
    grads = torch.autograd.grad(z, leaves, gz)
    for got, expected in zip(grads, expect_backward(gz, x, p, q, form, group_size, ids), strict=True):
        assert_close(got, expected, arithmetic_of(dtype), units=14)  # sums of up to 64 rows

    if problem["inplace"]:
        apply(x, p, q, form, ids, inplace=True, **kw)
        assert torch.equal(x, z)
    assert (buffer[outside] == 7).all()
