"""Tools of PyTorch that transform or record a program, on the public functions."""

import pytest
import torch
from support.problems import make_params, make_x
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import road_kernels as rk

pytestmark = [pytest.mark.wiring, pytest.mark.cpu_only]

IDS = torch.tensor([2, -1, 0, 2])
THETA, ALPHA = make_params("road_1", 3, 16)
R1, R2 = make_params("table", 3, 16)
WEIGHT = make_x(16, seed=5)
LORA = make_x(3, 2, 16, seed=2), make_x(3, 16, 2, seed=3)
OPTIONS = {"group_size": 8}

# Each from [4, 16] to [4, 16]. "* 1": what is written in place is no input of the program.
CALLS = {
    "road_apply": lambda x: rk.road_apply(x, THETA[0], ALPHA[0], **OPTIONS),
    "road_apply in place": lambda x: rk.road_apply(x * 1, THETA[0], ALPHA[0], inplace=True, **OPTIONS),
    "road_apply_batched in place": lambda x: rk.road_apply_batched(x * 1, THETA, ALPHA, IDS, inplace=True, **OPTIONS),
    "rotate_batched": lambda x: rk.rotate_batched(x, R1, R2, IDS, overlap=True, **OPTIONS),
    "road_tables": lambda x: rk.rotate(x, *rk.road_tables(THETA[0], ALPHA[0], **OPTIONS), **OPTIONS),
    "compose": lambda x: rk.rotate(x, *rk.compose((R1[0], R2[0]), (R1[1], R2[1]), dim=16, **OPTIONS), **OPTIONS),
    "road_merge": lambda x: rk.road_merge(x.t().contiguous(), x[0], THETA[0], ALPHA[0], **OPTIONS)[0].t(),
    "butterfly": lambda x: rk.related_adapters.butterfly(x, THETA[:2], ALPHA[:2]),
    "rotate_silu_mul": lambda x: rk.rotate_silu_mul(torch.cat((x, x), -1)[:, :16], R1, R2, IDS, **OPTIONS).repeat(1, 2),
    "rotate_add_rms_norm": lambda x: rk.rotate_add_rms_norm(x, x * 2, WEIGHT, R1, R2, IDS, **OPTIONS)[0],
    "rotate_add_rms_norm in place": lambda x: rk.rotate_add_rms_norm(
        x * 1, x * 2, WEIGHT, R1, R2, IDS, inplace=True, **OPTIONS
    )[0],
    "road_lora_apply in place": lambda x: rk.road_lora_apply(
        x * 1, x, THETA[0], ALPHA[0], LORA[0][0], LORA[1][0], inplace=True, **OPTIONS
    ),
    "road_lora_apply_batched": lambda x: rk.road_lora_apply_batched(x, x, THETA, ALPHA, *LORA, IDS, **OPTIONS),
}


class Module(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def functionalize(call, x):
    return torch.func.functionalize(call, remove="mutations_and_views")(x)


def jit_trace(call, x):
    return torch.jit.trace(call, (x,))(x)  # with its check


def make_fx_graph(call, x):
    return make_fx(call)(x)(x)


def make_fx_symbolic(call, x):
    return make_fx(call, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)(x)


def export(call, x):
    return torch.export.export(Module(call), (x,), strict=False).run_decompositions().module()(x)


def export_strict(call, x):
    return torch.export.export(Module(call), (x,), strict=True).module()(x)


def fake(call, x):
    z = call(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = call(mode.from_tensor(x))
    assert (faked.shape, faked.dtype) == (z.shape, z.dtype)
    return z


def compiled_autograd(call, x):
    leaf = x.clone().requires_grad_()
    z = call(leaf)
    if z.requires_grad:
        (want,) = torch.autograd.grad(z.square().sum(), leaf)
        torch._dynamo.reset()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            call(leaf).square().sum().backward()
        torch.testing.assert_close(leaf.grad, want)
    return z.detach()


SLOW = (make_fx_symbolic, export, export_strict, compiled_autograd)
TOOLS = (functionalize, jit_trace, make_fx_graph, fake, *(pytest.param(t, marks=pytest.mark.slow) for t in SLOW))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_as_without_the_tool(backend, name, tool):
    call, x = CALLS[name], make_x(4, 16)
    with rk.use_backend(backend):
        torch.testing.assert_close(tool(call, x), call(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_unmerge_of_fake_tensors(backend):
    """Its check reads determinants, which fake tensors do not have."""
    with rk.use_backend(backend), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weight, bias = rk.road_unmerge(mode.from_tensor(make_x(16, 4)), None, THETA[0], ALPHA[0], **OPTIONS)
    assert weight.shape == (16, 4) and bias is None
