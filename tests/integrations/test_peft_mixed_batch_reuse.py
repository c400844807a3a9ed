"""One model for many mixed batches: cached ids, switched gradients, threads, torch.compile, copies of the model."""

import copy
import threading

import pytest
import torch
from support.expected import assert_close, f64
from support.peft_models import NAMES, expect_mixed, first, layers, mixed_model, randomize
from support.problems import make_x

from road_kernels.integrations import peft as road_peft
from road_kernels.integrations.peft import _batch_plan


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


def test_one_copy_of_the_ids_for_all_layers(monkeypatch):
    model, x = mixed_model(), make_x(6, 16)
    made = []
    make = _batch_plan._make_plan
    monkeypatch.setattr(_batch_plan, "_make_plan", lambda *a: made.append(a) or make(*a))
    monkeypatch.setattr(_batch_plan, "_plans", [])
    assert len(layers(model)) == 2
    names = list(NAMES)
    model(x, adapter_names=names)
    assert len(made) == 1
    names.reverse()  # the same list object with other contents
    z = first(model)(x, adapter_names=names)
    assert len(made) == 2
    for b, row in enumerate(expect_mixed(first(model), x, names)[1]):
        assert_close(z[b], row, torch.float32)


def test_ids_made_in_inference_mode_serve_a_call_that_records(monkeypatch):
    model, x = mixed_model(), make_x(6, 16)
    monkeypatch.setattr(_batch_plan, "_plans", [])
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
