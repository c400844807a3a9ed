"""Runs are bitwise repeatable, at any number of threads, and a row does not depend on the rest of its batch."""

import pytest
import torch
from support.gradients import everything
from support.problems import DTYPES, FORMS, apply, make_params, make_x


@pytest.mark.parametrize("form", FORMS)
def test_repeated_runs(backend, form):
    first = everything(backend, form)
    for _ in range(3):
        assert all(map(torch.equal, everything(backend, form), first))


@pytest.mark.cpu_only
@pytest.mark.parametrize("form", FORMS)
def test_number_of_threads(form):
    """Guaranteed by the CPU kernels; torch's reductions, which the python backend uses, do not guarantee it."""
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            results.append(everything("cpu", form))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "group_size"), [(192, 64), (70, 2), (18, 6)], ids=str)
def test_a_row_does_not_depend_on_its_batch(backend, form, dtype, dim, group_size):
    x = make_x(9, dim, dtype=dtype)
    p, q = make_params(form, 4, dim)
    ids = torch.tensor([3, 1, -1, 0, 3, 2, 2, 1, -1])
    together = apply(x, p, q, form, ids, group_size=group_size, backend=backend)
    for r in range(9):
        alone = apply(x[r : r + 1], p, q, form, ids[r : r + 1], group_size=group_size, backend=backend)
        assert torch.equal(together[r], alone[0])
        if ids[r] >= 0:
            single = apply(x[r], p[ids[r]], q[ids[r]], form, group_size=group_size, backend=backend)
            assert torch.equal(together[r], single)
