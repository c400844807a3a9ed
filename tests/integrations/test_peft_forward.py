"""PEFT's RoAd layers on the kernels: forward and backward with one active adapter."""

import pytest
import torch
from support.backends import DEVICE
from support.expected import arithmetic_of, assert_close
from support.peft_models import VARIANTS, expect_rotated, first, in_float64, make_model, matrix_of
from support.problems import make_x
from torch.utils.checkpoint import checkpoint

from road_kernels.integrations import peft as road_peft

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("group_size", [2, 64])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_one_rounding_in_the_dtype_of_the_base_layer(calls, dtype, variant, group_size):
    layer = first(make_model((variant, group_size), dtype=dtype))
    x = make_x(3, 5, 16, dtype=dtype)
    promised = layer(x).dtype
    with road_peft.enabled():
        z = layer(x)
    assert z.dtype == promised == dtype
    assert calls == ["road_apply"]
    assert_close(z, expect_rotated(layer.base_layer(x), matrix_of(layer, "A")), arithmetic_of(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("width", [2, 6])
def test_narrow_layers(variant, width):
    layer = first(make_model((variant, 2), width=width))
    x = make_x(3, 16)
    with road_peft.enabled():
        assert_close(layer(x), expect_rotated(layer.base_layer(x), matrix_of(layer, "A")), torch.float32)


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_result_dtype_is_what_peft_promises(base, adapters):
    layer = first(make_model(dtype=base))
    for parameters in (layer.road_theta, layer.road_alpha):
        parameters.to(adapters)
    x = make_x(2, 16, dtype=base)

    def dtypes():
        yield layer(x).dtype
        layer.cast_input_dtype_enabled = False
        yield layer(x).dtype
        layer.cast_input_dtype_enabled = True
        if base != torch.float64:  # which autocast does not touch
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                yield layer(x).dtype

    theirs = list(dtypes())
    with road_peft.enabled():
        assert list(dtypes()) == theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_accurate_as_peft_on_a_whole_model(dtype):
    model = make_model(("road_4", 64), ("road_1", 64), ("road_2", 2), dtype=dtype)
    model.base_model.set_adapter(["A", "B", "C"])
    x = make_x(64, 16, dtype=dtype)
    want = in_float64(model)(x.double())
    theirs = model(x)
    with road_peft.enabled():
        ours = model(x)
    error = lambda z: (z.double() - want).square().mean().sqrt()  # noqa: E731
    assert error(ours) <= 1.05 * error(theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_peft_in_float64(variant):
    model = make_model((variant, 64))
    exact = in_float64(model)
    x = make_x(7, 16).requires_grad_()
    gz = make_x(7, 128, seed=5)
    x64 = x.detach().double().requires_grad_()
    exact(x64).backward(gz.double())
    with road_peft.enabled():
        model(x).backward(gz)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert len(parameters) == 4
    for (name, p), p64 in zip(parameters, (p for p in exact.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(p.grad.double(), p64.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def saved_bytes(layer, x) -> int:
    """Bytes that autograd saves for the backward of one layer, not counting its parameters and its input."""
    kept = {}
    known = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), x)}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z = layer(x)
    assert z.requires_grad
    return sum(kept.values())


def test_training_in_bfloat16_keeps_two_bytes_per_output_element():
    layer = first(make_model(dtype=torch.bfloat16))
    x = make_x(1000, 16, dtype=torch.bfloat16)
    elements = 1000 * 128
    assert saved_bytes(layer, x) >= 8 * elements  # PEFT; if this fails, the comparison in the docs is out of date
    with road_peft.enabled():
        assert saved_bytes(layer, x) == 2 * elements


def test_disabled_unknown_and_no_adapters_leave_the_base_layer():
    model = make_model()
    layer, x = first(model), make_x(2, 16)
    with road_peft.enabled():
        with model.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))
        layer._active_adapter = ["not here"]
        assert torch.equal(layer(x), layer.base_layer(x))
        layer._active_adapter = []
        assert torch.equal(layer(x), layer.base_layer(x))


def test_disabling_a_merged_adapter_unmerges_it():
    model = make_model()
    x = make_x(2, 16)
    base = first(model).base_layer(x)
    with road_peft.enabled():
        model.merge_adapter()
        assert not torch.allclose(first(model)(x), base, atol=1e-2)
        with model.disable_adapter():
            torch.testing.assert_close(first(model)(x), base)
        assert not first(model).merged


def test_a_fresh_adapter_changes_nothing():
    model = make_model(dtype=torch.bfloat16)
    layer, x = first(model), make_x(4, 16, dtype=torch.bfloat16)
    layer.reset_parameters("A", True)
    with road_peft.enabled():
        assert torch.equal(layer(x), layer.base_layer(x))


def test_empty_batch_and_one_sample():
    layer = first(make_model())
    with road_peft.enabled():
        assert layer(make_x(0, 3, 16)).shape == (0, 3, 128)
        assert layer(make_x(16)).shape == (128,)


def test_gradient_checkpointing():
    model = make_model()
    x = make_x(5, 16)
    with road_peft.enabled():
        grads = []
        for run in (model, lambda t: checkpoint(model, t, use_reentrant=False)):
            model.zero_grad()
            run(x).square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_and_inference_mode():
    model = make_model()
    layer, x = first(model), make_x(5, 16)
    with road_peft.enabled(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert_close(layer(x), expect_rotated(layer.base_layer(x), matrix_of(layer, "A")), torch.float32)
    with road_peft.enabled():
        with torch.inference_mode():
            z = model(x)
        model(x).sum().backward()
        assert torch.equal(z, model(x))


HOOKS = {
    "full backward hook": lambda base: base.register_full_backward_hook(lambda *_: None),
    "full backward pre-hook": lambda base: base.register_full_backward_pre_hook(lambda *_: None),
    "hook of all modules": lambda base: torch.nn.modules.module.register_module_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("names", [None, ["A", "A", "__base__"]], ids=["active", "mixed"])
@pytest.mark.parametrize("kind", HOOKS)
def test_in_place_under_backward_hooks(kind, names):
    """They make the output of the base layer a view that autograd lets nobody write."""
    model = make_model().eval()
    gz, x = make_x(3, 128), make_x(3, 16)
    call = {} if names is None else {"adapter_names": names}
    with road_peft.enabled():
        model(x, **call).backward(gz)
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    handle = HOOKS[kind](first(model).base_layer)
    with road_peft.enabled(inplace=True):
        model(x, **call).backward(gz)
    handle.remove()
    got = [p.grad for p in model.parameters() if p.grad is not None]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_in_place_with_an_op_in_place_behind_it_is_autograds_error():
    layer = first(make_model())
    with road_peft.enabled(inplace=True):
        z = torch.nn.functional.relu(layer(make_x(3, 16)), inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_in_place_writes_over_the_output_of_the_base_layer():
    model = make_model(dtype=torch.bfloat16)
    layer, x = first(model), make_x(1000, 16, dtype=torch.bfloat16)
    held = []
    layer.base_layer.register_forward_hook(lambda m, args, output: held.append(output))
    with road_peft.enabled():
        want = layer(x)
        assert want.data_ptr() != held.pop().data_ptr()
    with road_peft.enabled(inplace=True):
        with torch.no_grad():
            z = layer(x)
        assert z.data_ptr() == held.pop().data_ptr()
        assert torch.equal(z, want)
        assert saved_bytes(layer, x) == layer(x).untyped_storage().nbytes()  # the next layer saves it anyway
        layer(x).float().sum().backward()
        assert layer.road_theta["A"].grad.isfinite().all()


def test_a_forward_that_was_wrapped_before_still_runs_on_the_kernels(calls):
    """As accelerate's hooks do: the instance keeps PEFT's bound method."""
    layer, x = first(make_model(dtype=torch.bfloat16)), make_x(4, 16, dtype=torch.bfloat16)
    before = layer.forward
    layer.forward = lambda *args, **kwargs: before(*args, **kwargs)
    want = layer(x)
    with road_peft.enabled():
        torch.testing.assert_close(layer(x), want)
    assert calls == ["road_apply"]


def test_tensor_subclasses_keep_the_formula_of_peft(calls):
    class Own(torch.Tensor):
        pass

    layer, x = first(make_model()), make_x(4, 16)
    want = layer(x)
    layer.base_layer.register_forward_hook(lambda m, args, output: output.as_subclass(Own))
    with road_peft.enabled():
        z = layer(x)
    assert type(z) is Own
    assert torch.equal(z.as_subclass(torch.Tensor), want)
    assert calls == []
