"""Tools of PyTorch that transform or record a program, on a PEFT model with the kernels: as with PEFT alone."""

import pytest
import torch
from support.peft_models import NAMES, first, mixed_model
from support.problems import make_x
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from road_kernels.integrations import peft as road_peft
from road_kernels.integrations.peft import _batch_plan


class Call(nn.Module):
    """A call with or without adapter_names, of a model or a layer."""

    def __init__(self, module, names):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, x):
        return self.module(x) if self.names is None else self.module(x, adapter_names=self.names)


def functionalize(call, x):
    return torch.func.functionalize(call)(x)


def vmap(call, x):
    return torch.vmap(call)(x[None])[0]


def jvp(call, x):
    z, tangent = torch.func.jvp(call, (x,), (torch.ones_like(x),))
    small = 1e-3
    torch.testing.assert_close((call(x + small) - call(x - small)) / (2 * small), tangent, rtol=1e-2, atol=1e-2)
    return z


def func_grad(call, x):
    got = torch.func.grad(lambda x: call(x).square().sum())(x)
    leaf = x.clone().requires_grad_()
    call(leaf).square().sum().backward()
    torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-4)
    return call(x)


def jit_trace(call, x):
    return torch.jit.trace(call, (x,))(x)  # with its check


def make_fx_graph(call, x):
    return make_fx(call)(x)(x)


def export(call, x):
    return torch.export.export(call, (x,), strict=False).module()(x)


def export_strict(call, x):
    return torch.export.export(call, (x,), strict=True).module()(x)


def compiled(call, x):
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="aot_eager")(x)


def compiled_autograd(call, x):
    torch._dynamo.reset()
    z = call(x)
    leaf = x.clone().requires_grad_()
    call(leaf).square().sum().backward()
    want, leaf.grad = leaf.grad, None
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        call(leaf).square().sum().backward()
    torch.testing.assert_close(leaf.grad, want, rtol=1e-4, atol=1e-4)
    return z


def inference_mode(call, x):
    with torch.inference_mode():
        return call(x).clone()


def fake(call, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        z = call(mode.from_tensor(x))
    assert z.shape[0] == len(x)
    return call(x)


SLOW = (export_strict, compiled_autograd)
TOOLS = (
    functionalize,
    vmap,
    jvp,
    func_grad,
    jit_trace,
    make_fx_graph,
    export,
    compiled,
    inference_mode,
    fake,
    *(pytest.param(tool, marks=pytest.mark.slow) for tool in SLOW),
)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("what", ["layer", "model", "layer, names", "model, names"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_as_without_the_tool(monkeypatch, tool, what):
    """The batch is first seen inside of the tool, and real calls follow."""
    model, x = mixed_model(), make_x(6, 16)
    module, names = first(model) if "layer" in what else model, NAMES if "names" in what else None
    call = Call(module, names).eval()
    monkeypatch.setattr(_batch_plan, "_latest", [])
    want = call(x).detach()
    road_peft.enable()
    try:
        torch.testing.assert_close(tool(call, x).detach(), want, rtol=1e-5, atol=1e-5)
        for batch in _batch_plan._latest:
            for run in (*batch.used, *batch.every):
                assert type(run.ids) is torch.Tensor and not run.ids.is_inference()
        z = call(x)
        z.sum().backward()
        torch.testing.assert_close(z.detach(), want, rtol=1e-5, atol=1e-5)
    finally:
        road_peft.disable()


def test_a_batch_that_is_known_outside_is_not_used_inside():
    model, x = mixed_model(), make_x(6, 16)
    with road_peft.enabled():
        want = model(x, adapter_names=NAMES)
        with FakeTensorMode() as mode:
            parameters = {name: mode.from_tensor(p) for name, p in model.named_parameters()}
            z = torch.func.functional_call(model, parameters, mode.from_tensor(x), {"adapter_names": NAMES})
            assert z.shape == want.shape
        assert torch.equal(model(x, adapter_names=NAMES), want)


@pytest.mark.slow  # compiles C++
def test_aot_inductor(tmp_path):
    model, x = mixed_model(), make_x(6, 16)
    with road_peft.enabled(), torch.no_grad():
        call = Call(model, NAMES).eval()
        program = torch.export.export(call, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), call(x), rtol=1e-5, atol=1e-5)
