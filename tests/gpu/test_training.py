"""Training steps against plain PyTorch, cuda against triton, torch.compile with CUDA graphs."""

import subprocess
import sys

import pytest
import torch
from gpu_work import make_ids, ulp
from support.backends import usable_backends
from support.problems import DTYPES, FORMS, apply, make_params, make_x

import road_kernels as rk


class Network(torch.nn.Module):
    """Two frozen linear layers, each under an adapter of its own variant; the second one in place."""

    def __init__(self, width=256):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(2))
        self.layers.to(torch.bfloat16).requires_grad_(False)
        sizes = (width // 2, 2 * width)
        self.theta = torch.nn.ParameterList(0.1 * torch.randn(n) for n in sizes)
        self.alpha = torch.nn.ParameterList(1 + 0.1 * torch.randn(n) for n in sizes)

    def forward(self, x):
        for k, variant in enumerate(("road_1", "road_4")):
            x = rk.road_apply(self.layers[k](x), self.theta[k], self.alpha[k], variant=variant, inplace=k == 1)
            x = torch.nn.functional.silu(x) if k == 0 else x
        return x


def train(backend, steps=5):
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x, target = make_x(64, 16, 256, dtype=torch.bfloat16), make_x(64, 16, 256, seed=1)
    losses = []
    with rk.use_backend(backend):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (network(x).float() - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, [p.detach() for p in network.parameters() if p.requires_grad]


def test_training_steps_are_those_of_plain_pytorch(kernels):
    losses, params = train(kernels)
    want_losses, want = train("python")
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, want_losses, rtol=1e-3, atol=0)
    for got, expected in zip(params, want, strict=True):
        # Adam's first steps are signs: a gradient near zero may flip a few of them.
        assert ((got - expected).abs() > 1e-3).double().mean() < 0.01
    assert train(kernels)[0] == losses


@pytest.mark.backend("triton")  # in the processes of triton, over which check.py spreads the compilations
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("group_size", [2, 64, 40], ids=str)
def test_cuda_and_triton_agree_to_one_ulp(form, dtype, batched, group_size):
    if missing := {"cuda", "triton"} - set(usable_backends()):
        pytest.skip(f"not usable here: {', '.join(missing)}")
    dim = 640
    x, gz = make_x(257, dim, dtype=dtype), make_x(257, dim, dtype=dtype, seed=1)
    p, q = make_params(form, 7 if batched else None, dim)
    ids = make_ids(257, 7) if batched else None
    results = []
    for backend in ("cuda", "triton"):
        leaves = [t.clone().requires_grad_() for t in (x, p, q)]
        z = apply(*leaves, form, ids, group_size=group_size, backend=backend)
        results.append((z.detach(), *torch.autograd.grad(z, leaves, gz)))
    (z, gx, *grads), (other_z, other_gx, *other_grads) = results
    for got, want, source in ((z, other_z, x), (gx, other_gx, gz)):
        # float32 sines differ in the last digits, which shows where a difference of two products cancels.
        cancelled = 8 * torch.finfo(torch.float32).eps * source.abs().amax(-1, keepdim=True)
        assert ((got.double() - want.double()).abs() <= ulp(want) + cancelled).all()
    for got, want in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * 257**0.5 * 4)


def test_compiled_with_cuda_graphs(kernels):
    """mode="reduce-overhead" captures what it compiles."""
    theta, alpha = make_params("road_1", 3, 256)
    ids = torch.tensor([2, -1, 0, 1])

    def f(x, ids):
        return rk.road_apply_batched(torch.relu(x), theta, alpha, ids, inplace=True, backend=kernels) * 2

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for seed in range(4):
            x = make_x(4, 16, 256, dtype=torch.bfloat16, seed=seed)
            torch.testing.assert_close(compiled(x, ids).clone(), f(x, ids), rtol=2e-2, atol=2e-2)


def test_training_compiled_with_cuda_graphs(kernels):
    theta, alpha = (t.requires_grad_() for t in make_params("road_1", None, 256))

    def loss(x):
        return rk.road_apply(torch.relu(x), theta, alpha, backend=kernels).float().square().mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # warm-up, capture, replays
        x = make_x(64, 256, dtype=torch.bfloat16, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        got = torch.autograd.grad(compiled(x), (theta, alpha))
        for g, want in zip(got, torch.autograd.grad(loss(x), (theta, alpha)), strict=True):
            torch.testing.assert_close(g.clone(), want, rtol=1e-3, atol=1e-6)


FORK = """
import os, sys
import road_kernels as rk
import torch
assert not torch.cuda.is_initialized()
if torch.cuda._device_count_nvml() < 0:
    sys.exit(77)
child = os.fork()
if child == 0:
    x, theta, alpha = torch.ones(2, 64, device="cuda"), torch.zeros(32, device="cuda"), torch.ones(32, device="cuda")
    os._exit(0 if torch.equal(rk.road_apply(x, theta, alpha), x) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_importing_leaves_cuda_usable_after_a_fork():
    """Servers and data loaders fork, and a process that has queried the CUDA runtime cannot use it after a fork."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    if run.returncode == 77:
        pytest.skip("without NVML, torch itself starts the CUDA runtime to count the devices")
    assert run.returncode == 0, run.stderr
