"""One model for many mixed batches: cached ids, switched gradients, threads, torch.compile, copies of the model."""

import copy
import gc
import itertools
import threading
import weakref

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
    to_device = _batch_plan.bank_ids.to_device
    monkeypatch.setattr(_batch_plan.bank_ids, "to_device", lambda *a: made.append(a) or to_device(*a))
    monkeypatch.setattr(_batch_plan, "_latest", [])
    assert len(layers(model)) == 2
    names = list(NAMES)
    for _ in range(2):
        model(x, adapter_names=names)
        assert len(made) == 2  # of the adapters in the batch, and of all
    names.reverse()  # the same list object with other contents
    z = first(model)(x, adapter_names=names)
    assert len(made) == 4
    for b, row in enumerate(expect_mixed(first(model), x, names)[1]):
        assert_close(z[b], row, torch.float32)


class Capturing:
    """Stands for a stream of a GPU on which a CUDA graph is being captured."""

    type = "cuda"

    def __eq__(self, other):
        return type(other) is Capturing


def test_ids_live_as_long_as_the_layer_of_a_captured_graph(monkeypatch):
    layer = first(mixed_model())
    captures = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures[0])
    to_device = _batch_plan.bank_ids.to_device
    monkeypatch.setattr(
        _batch_plan.bank_ids, "to_device", lambda slots, *_: to_device(slots, None, torch.device("cpu"))
    )
    monkeypatch.setattr(_batch_plan, "_latest", [])
    device = Capturing()
    warm = _batch_plan.batch_of(layer, NAMES, device)
    ids = [weakref.ref(run.ids) for run in (*warm.used, *warm.every)]
    captures[0] = True
    assert _batch_plan.batch_of(layer, NAMES, device) is warm
    with pytest.raises(
        RuntimeError, match=r"the mixed batch \['A', 'A'\] must run once before a CUDA graph captures it"
    ):
        _batch_plan.batch_of(layer, ["A", "A"], device)
    captures[0] = False
    for order in itertools.islice(itertools.permutations(NAMES), 1, 65):
        _batch_plan.batch_of(layer, list(order), device)
    del warm
    gc.collect()
    assert all(ref() is not None for ref in ids)
    captures[0] = True
    assert _batch_plan.batch_of(layer, NAMES, device).used[0].ids is ids[0]()
    del layer
    gc.collect()
    assert all(ref() is None for ref in ids)


def test_ids_made_in_inference_mode_serve_a_call_that_records(monkeypatch):
    model, x = mixed_model(), make_x(6, 16)
    monkeypatch.setattr(_batch_plan, "_latest", [])
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


@pytest.mark.parametrize("by", ["torch.compile", "layer.compile"])
def test_a_compiled_layer_takes_names_as_an_input(by):
    """One graph for all adapter_names, and one more without gradients."""
    layer = first(mixed_model())
    x = make_x(6, 16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"backend": "aot_eager", "fullgraph": True}
    want = {names: layer(x, adapter_names=list(names)) for names in itertools.islice(itertools.permutations(NAMES), 20)}
    if by == "torch.compile":
        compiled = torch.compile(layer, **options)
    else:
        layer.compile(**options)
        compiled = layer
    for names, z in want.items():
        torch.testing.assert_close(compiled(x, adapter_names=list(names)), z, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, adapter_names=list(names)), z, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
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
