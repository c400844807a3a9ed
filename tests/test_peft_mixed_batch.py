"""Mixed batches of a PEFT model: one adapter per sample, by adapter_names."""

import copy
import itertools
import threading

import pytest
import torch
from common import arithmetic_of, assert_close, f64, make_x
from peft import set_peft_model_state_dict
from peft_models import VARIANTS, config, expect_rotated, first, in_float64, layers, make_model, matrix_of, randomize

from road_kernels.integrations import peft as road_peft
from road_kernels.integrations.peft import _mixed_batch

BASE = "__base__"
NAMES = ["A", "C", BASE, "B", "A", "D"]
ADAPTERS = (("road_1", 64), ("road_2", 64), ("road_4", 64), ("road_1", 64))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


@pytest.fixture
def calls(monkeypatch):
    """(number of adapters, inplace) of each batched call."""
    made = []
    function = _mixed_batch.road_apply_batched

    def counted(x, theta, *args, inplace, **kwargs):
        made.append((len(theta), inplace))
        return function(x, theta, *args, inplace=inplace, **kwargs)

    monkeypatch.setattr(_mixed_batch, "road_apply_batched", counted)
    return made


def mixed_model(*adapters, **kwargs):
    return make_model(*(adapters or ADAPTERS), **kwargs).eval()


def expect_mixed(layer, x, names):
    h = layer.base_layer(x)
    rows = [expect_rotated(h[b], *([] if n == BASE else [matrix_of(layer, n)])) for b, n in enumerate(names)]
    return h, rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_call_for_all_variants(calls, dtype):
    """Where PEFT itself raises for float16 and bfloat16: its index_put has float32 values."""
    layer = first(mixed_model(dtype=dtype))
    x = make_x(6, 5, 16, dtype=dtype)
    with torch.no_grad():
        z = layer(x, adapter_names=NAMES)
    assert calls == [(4, True)]
    assert z.dtype == dtype
    h, rows = expect_mixed(layer, x, NAMES)
    for b, row in enumerate(rows):
        assert_close(z[b], row, arithmetic_of(dtype))
    assert torch.equal(z[2], h[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variants", [*itertools.combinations(VARIANTS, 2), *((v, v) for v in VARIANTS)], ids=str)
def test_each_sample_gets_bit_for_bit_what_it_gets_alone(variants, dtype):
    model = mixed_model(*((v, 64) for v in variants), dtype=dtype)
    x = make_x(4, 3, 16, dtype=dtype)
    names = ["B", "A", "A", "B"]
    with torch.no_grad():
        together = model(x, adapter_names=names)
        for b, name in enumerate(names):
            model.base_model.set_adapter([name])
            assert torch.equal(together[b], model(x)[b])  # x as a whole: matmul itself depends on the batch


@pytest.mark.parametrize("group_sizes", [(2, 2), (2, 64), (64, 128)], ids=str)
def test_one_call_per_group_size(calls, group_sizes):
    layer = first(mixed_model(*(("road_1", g) for g in group_sizes), dtype=torch.bfloat16))
    x = make_x(6, 16, dtype=torch.bfloat16)
    names = ["A", "B", BASE, "B", "A", "A"]
    with torch.no_grad():
        z = layer(x, adapter_names=names)
    assert len(calls) == len(set(group_sizes))
    for b, row in enumerate(expect_mixed(layer, x, names)[1]):
        assert_close(z[b], row, torch.float32)


def test_narrow_layers():
    layer = first(mixed_model(*((v, 2) for v in VARIANTS), width=2))
    x, names = make_x(4, 16), ["A", "B", "C", BASE]
    for b, row in enumerate(expect_mixed(layer, x, names)[1]):
        assert_close(layer(x, adapter_names=names)[b], row, torch.float32)


def test_same_as_peft_where_peft_can():
    model = mixed_model(("road_1", 64), ("road_4", 2), ("road_2", 128))
    x, names = make_x(5, 3, 16), ["C", "A", BASE, "B", "C"]
    ours = model(x, adapter_names=names)
    road_peft.disable()
    torch.testing.assert_close(ours, model(x, adapter_names=names), rtol=1e-5, atol=1e-5)


def test_only_base_rows_and_adapters_that_a_layer_does_not_have(calls):
    model = make_model().eval()
    model.add_adapter("B", config(targets=("second",)))
    x = make_x(3, 16)
    layer = first(model)
    assert torch.equal(layer(x, adapter_names=[BASE] * 3), layer.base_layer(x))
    assert torch.equal(layer(x, adapter_names=["B", BASE, "B"]), layer.base_layer(x))
    assert calls == []
    model(x, adapter_names=["A", "B", BASE])
    assert [count for count, _ in calls] == [1, 2]


def test_empty_batch():
    assert first(mixed_model())(make_x(0, 3, 16), adapter_names=[]).shape == (0, 3, 128)


def test_gradients_outside_training_mode():
    model = mixed_model(("road_1", 64), ("road_4", 64), ("road_2", 2))
    model.base_model.set_adapter(["A", "B", "C"])  # PEFT trains the active adapters
    exact = in_float64(model)
    x, gz, names = make_x(6, 16), make_x(6, 128, seed=4), ["A", "B", BASE, "C", "A", "B"]
    model(x, adapter_names=names).backward(gz)
    road_peft.disable()
    exact(x.double(), adapter_names=names).backward(gz.double())
    pairs = [(p, q) for p, q in zip(model.parameters(), exact.parameters(), strict=True) if p.requires_grad]
    assert len(pairs) == 12
    for p, q in pairs:
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-5)


# Every way to change a parameter that was found, with and without a trace in its version counter or its address.
def _by_optimizer(model, layer):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _by_load(model, layer):
    model.load_state_dict(randomize(mixed_model()).state_dict())


def _by_peft_load(model, layer):
    state = {k.replace(".B", ""): v + 0.1 for k, v in model.state_dict().items() if "road" in k and k.endswith(".B")}
    set_peft_model_state_dict(model, state, adapter_name="B")


def _by_data(model, layer):
    layer.road_theta["B"].data = layer.road_theta["B"].data + 0.1


def _by_data_twice(model, layer):  # the second tensor may get the address of the first
    for _ in range(2):
        layer.road_theta["B"].data = layer.road_theta["B"].data + 0.1


def _through_data(model, layer):  # leaves no trace in version or address
    layer.road_theta["B"].data.add_(0.1)


def _through_numpy(model, layer):  # nor does a kernel that is not torch's
    layer.road_theta["B"].detach().numpy()[:] += 0.1


def _by_new_parameter(model, layer):
    layer.road_theta["B"] = torch.nn.Parameter(layer.road_theta["B"].detach() + 0.1)


def _by_dtype(model, layer):
    layer.road_theta.to(torch.bfloat16)


def _by_new_adapter(model, layer):
    model.delete_adapter("B")
    model.add_adapter("B", config("road_4", 2))
    randomize(model)


def _by_exchange(model, layer):
    for d in (layer.road_theta, layer.road_alpha):
        d["A"], d["D"] = d["D"], d["A"]


def _by_variant(model, layer):
    layer.variant["B"] = "road_1"
    for d in (layer.road_theta, layer.road_alpha):
        d["B"] = torch.nn.Parameter(d["B"].detach()[:64].clone())


CHANGES = [function for name, function in sorted(globals().items()) if name.startswith(("_by_", "_through_"))]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_never_stale(change, mode):
    assert len(CHANGES) == 12
    model = mixed_model()
    layer, x = first(model), make_x(6, 16)
    with mode():
        before = layer(x, adapter_names=NAMES).clone()
    change(model, layer)
    with mode():
        z = layer(x, adapter_names=NAMES)
    assert not torch.equal(z, before)
    for b, row in enumerate(expect_mixed(layer, x, NAMES)[1]):
        assert_close(z[b], row, torch.float32)


def test_one_copy_of_the_ids_for_all_layers(monkeypatch):
    model, x = mixed_model(), make_x(6, 16)
    made = []
    make = _mixed_batch._make_ids
    monkeypatch.setattr(_mixed_batch, "_make_ids", lambda *a: made.append(a) or make(*a))
    _mixed_batch._cached_ids.cache_clear()
    assert len(layers(model)) == 2
    names = list(NAMES)
    model(x, adapter_names=names)
    assert len(made) == 1
    names.reverse()  # the same list object, another batch
    z = first(model)(x, adapter_names=names)
    assert len(made) == 2
    for b, row in enumerate(expect_mixed(first(model), x, names)[1]):
        assert_close(z[b], row, torch.float32)


def test_ids_made_in_inference_mode_serve_a_call_that_records():
    model, x = mixed_model(), make_x(6, 16)
    _mixed_batch._cached_ids.cache_clear()
    with torch.inference_mode():
        want = model(x, adapter_names=NAMES)
    z = model(x, adapter_names=NAMES)
    z.sum().backward()
    assert torch.equal(z, want)


def test_requires_grad_can_be_switched():
    model, x = mixed_model(), make_x(6, 16)
    want = model(x, adapter_names=NAMES)
    model.requires_grad_(False)
    z = model(x, adapter_names=NAMES)
    assert not z.requires_grad
    assert torch.equal(z, want)
    first(model).road_alpha["D"].requires_grad_()
    z = model(x, adapter_names=NAMES)
    z.sum().backward()
    assert torch.equal(z, want)
    assert first(model).road_alpha["D"].grad.abs().sum() > 0
    assert first(model).road_alpha["A"].grad is None


def test_adapters_of_several_dtypes():
    model = mixed_model(dtype=torch.bfloat16)
    layer, x = first(model), make_x(6, 16, dtype=torch.bfloat16)
    for parameters in (layer.road_theta, layer.road_alpha):
        parameters["C"] = torch.nn.Parameter(parameters["C"].detach().to(torch.bfloat16))
        parameters["B"] = torch.nn.Parameter(parameters["B"].detach().double())
    z = layer(x, adapter_names=NAMES)
    assert z.dtype == torch.bfloat16
    for b, row in enumerate(expect_mixed(layer, x, NAMES)[1]):
        assert_close(z[b], row, torch.float32)


def test_errors_are_those_of_peft():
    model, x = mixed_model(), make_x(6, 16)
    messages = []
    for on in (True, False):
        (road_peft.enable if on else road_peft.disable)()
        for names in (["A"], ["A"] * 5 + ["nobody"]):
            with pytest.raises(ValueError) as error:
                model(x, adapter_names=names)
            messages.append(str(error.value))
        model = mixed_model()  # PEFT leaves its hooks on a model whose forward raised
        model.merge_adapter()
        with pytest.raises(ValueError, match="unmerge_adapter") as error:
            model(x, adapter_names=NAMES)
        messages.append(str(error.value))
        model = mixed_model().train()
        with pytest.raises(ValueError, match="training mode"):
            model(x, adapter_names=NAMES)
        model.eval()
    assert messages[:3] == messages[3:]
    assert "Length of `adapter_names`" in messages[0] and "nobody" in messages[1]


def test_disabled_adapters_are_not_applied():
    model, x = mixed_model(), make_x(6, 16)
    layer = first(model)
    with model.disable_adapter():
        assert torch.equal(layer(x, adapter_names=NAMES), layer.base_layer(x))


def test_threads_with_batches_of_their_own():
    layer = first(mixed_model())
    x = make_x(6, 16)
    orders = [list(NAMES[i:] + NAMES[:i]) for i in range(4)]
    with torch.no_grad():
        want = [layer(x, adapter_names=names) for names in orders]
    wrong = []

    def work(i):
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(layer(x, adapter_names=orders[i]), want[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_compile_of_a_layer_in_one_graph():
    layer = first(mixed_model())
    x = make_x(6, 16)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for names in (NAMES, NAMES[::-1]):
        want = layer(x, adapter_names=names)
        torch.testing.assert_close(compiled(x, adapter_names=names), want, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, adapter_names=names), want, rtol=1e-5, atol=1e-5)
    compiled(x, adapter_names=NAMES).sum().backward()
    assert layer.road_theta["A"].grad.isfinite().all()


def test_tensor_subclasses_are_left_to_peft():
    class Own(torch.Tensor):
        pass

    layer, x = first(mixed_model()), make_x(6, 16)
    want = layer(x, adapter_names=NAMES)
    layer.base_layer.register_forward_hook(lambda m, args, output: output.as_subclass(Own))
    z = layer(x, adapter_names=NAMES)
    assert type(z) is Own
    torch.testing.assert_close(z.as_subclass(torch.Tensor), want, rtol=1e-5, atol=1e-5)


def test_a_copied_model_has_adapters_of_its_own():
    model, x = mixed_model(), make_x(6, 16)
    want = model(x, adapter_names=NAMES)
    other = randomize(copy.deepcopy(model))
    assert not torch.equal(other(x, adapter_names=NAMES), want)
    assert torch.equal(model(x, adapter_names=NAMES), want)
    assert f64(want).shape == (6, 128)
