"""Mixed batches after a change of an adapter's parameters must not use what was computed before it."""

import pytest
import torch
from peft import set_peft_model_state_dict
from support.backends import DEVICE
from support.expected import assert_close
from support.peft_models import NAMES, config, expect_mixed, first, mixed_model, randomize
from support.problems import make_x

from road_kernels.integrations import peft as road_peft


@pytest.fixture(autouse=True)
def _on():
    with road_peft.enabled():
        yield


# Every way to change a parameter that we know of, whether its version counter or its address tells or not.
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


def _by_data_twice(model, layer):  # the second tensor may be allocated where the first was
    for _ in range(2):
        layer.road_theta["B"].data = layer.road_theta["B"].data + 0.1


def _through_data(model, layer):  # changes neither version nor address
    layer.road_theta["B"].data.add_(0.1)


def _through_numpy(model, layer):  # nor do writes by others than torch
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
    if change is _through_numpy and DEVICE != "cpu":
        pytest.skip("NumPy shares memory with CPU tensors only")
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
