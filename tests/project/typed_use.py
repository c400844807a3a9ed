"""What type checkers see of the public API. `make lint` runs mypy on it; nothing imports it."""

import torch
from torch import Tensor
from typing_extensions import assert_type

import road_kernels as rk


def functions(x: Tensor, theta: Tensor, alpha: Tensor, ids: Tensor, bias: Tensor | None) -> None:
    assert_type(rk.road_apply(x, theta, alpha, variant="road_1", group_size=64, inplace=True, backend="cpu"), Tensor)
    assert_type(rk.road_apply_batched(x, theta, alpha, ids), Tensor)
    tables = rk.road_tables(theta, alpha)
    assert_type(tables, tuple[Tensor, Tensor])
    assert_type(rk.rotate(x, *tables), Tensor)
    assert_type(rk.rotate_batched(x, *tables, ids, overlap=True), Tensor)
    assert_type(rk.rotate_silu_mul(x, *tables), Tensor)
    assert_type(rk.rotate_add_rms_norm(x, x, x, *tables, ids, eps=1e-5, inplace=True), tuple[Tensor, Tensor])
    assert_type(rk.rotate_rope(x, ids, x, *tables, num_heads=8, num_kv_heads=2, head_dim=64), Tensor)
    assert_type(rk.road_merge(x, bias, theta, alpha), tuple[Tensor, Tensor | None])
    assert_type(rk.road_unmerge(x, None, theta, alpha, inplace=True), tuple[Tensor, Tensor | None])


def algebra(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    assert_type(rk.compose(a, b, dim=8), tuple[Tensor, Tensor])
    assert_type(rk.combine([(a, range(2)), (b, range(2, 4))], dim=8), tuple[Tensor, Tensor])
    assert_type(rk.invert(rk.identity(8), dim=8), tuple[Tensor, Tensor])
    assert_type(rk.cosine_similarity(a[0], b[0]), Tensor)


def serving(h: Tensor, parameters: tuple[Tensor, Tensor]) -> None:
    adapter = rk.Adapter({"q": parameters}, variant="road_1")
    bank = rk.AdapterBank({"q": 512}, capacity=4, device=torch.device("cpu"), dtype=torch.float16)
    assert_type(bank.load("anna", adapter), int)
    bank.load("ben", "folder/of/save_pretrained")
    assert_type(bank.ids(["anna", None]), Tensor)
    with bank.hold(["anna"]) as ids:
        assert_type(ids, Tensor)
        assert_type(bank.layer("q").rotate(h, ids, inplace=True), Tensor)
    assert_type(bank.tables("q"), tuple[Tensor, Tensor])
    assert_type(rk.Adapter.from_peft("folder").widths, dict[str, int])


def backends() -> None:
    rk.set_backend(None)
    with rk.use_backend("python"):
        rk.rotate("no tensor", torch.ones(1), torch.ones(1))  # type: ignore[arg-type]
    assert_type(rk.__version__, str)
