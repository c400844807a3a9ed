"""The kernel for the Hugging Face Hub (packaging/hub): what it may hold, and PEFT's layers on it by `kernelize`."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from support import triton_interpreter

import road_kernels as rk

kernels = pytest.importorskip("kernels", reason="the package kernels loads it")
ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("assemble", ROOT / "packaging" / "hub" / "assemble.py")
assemble = importlib.util.module_from_spec(spec)
spec.loader.exec_module(assemble)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return assemble.assemble(tmp_path_factory.mktemp("hub") / "kernel")


@pytest.fixture(scope="module")
def kernel(folder):
    return kernels.get_local_kernel(folder, backend="cpu")


def test_build_toml_is_what_kernel_builder_takes(folder):
    from kernels._rust import Build

    assert {str(backend).lower() for backend in Build.open(folder).general.backends} == set(assemble.BACKENDS)


def test_imports_are_relative_or_allowed(folder):
    """The standard library, torch, and Triton, which PyTorch brings on GPUs; itself under whatever name it gets."""
    files = list((folder / "torch-ext").rglob("*.py"))
    assert len(files) > 40
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in ("torch", "triton") or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_it_holds_nothing_compiled_and_no_serving(folder):
    assert not list(folder.rglob("*.so")) and not list(folder.rglob("*.pyi"))
    package = folder / "torch-ext" / "road_kernels"
    assert not (package / "serving").exists() and not (package / "integrations").exists()


def test_layers_are_pure(kernel):
    layer = kernel.layers.RoadLinear
    assert layer.__init__ is torch.nn.Module.__init__
    assert {name for name in vars(layer) if not name.startswith("__")} == {
        "forward",
        "has_backward",
        "can_torch_compile",
    }


def test_beside_the_package(kernel):
    """In one process, with ops of its own."""
    x, theta, alpha = torch.randn(5, 128), torch.randn(3, 64), torch.rand(3, 64) + 0.5
    ids = torch.tensor([0, -1, 2, 1, 0])
    theta.requires_grad_()
    z = kernel.road_apply_batched(x, theta, alpha, ids)
    want = rk.road_apply_batched(x.double(), theta, alpha, ids)
    torch.testing.assert_close(z, want.float())
    (grad,) = torch.autograd.grad(z.square().sum(), theta)
    torch.testing.assert_close(grad, torch.autograd.grad(want.square().sum(), theta)[0], rtol=1e-4, atol=1e-4)
    assert kernel.backend_info()["automatic"]["cpu"] == "python"
    assert "the Hub has no compiled ones" in kernel.backend_info()["backends"]["cpu"]["reason"]
    assert type(z.grad_fn).__module__ != "road_kernels.ops.autograd"


def test_another_version_in_the_same_process(kernel, tmp_path, monkeypatch):
    monkeypatch.setitem(assemble.OWN, "README.md", "notes.md")  # any change
    other = kernels.get_local_kernel(assemble.assemble(tmp_path / "kernel"), backend="cpu")
    assert other.__name__ != kernel.__name__
    x, theta, alpha = torch.randn(2, 64), torch.randn(32), torch.ones(32)
    assert torch.equal(other.road_apply(x, theta, alpha), kernel.road_apply(x, theta, alpha))


@pytest.mark.backend("triton")
@pytest.mark.skipif(not triton_interpreter.INTERPRETED, reason="Triton's kernels need a GPU or TRITON_INTERPRET=1")
def test_triton(kernel):
    x, theta, alpha = torch.randn(5, 128), torch.randn(64), torch.rand(64) + 0.5
    z = kernel.road_apply(x, theta, alpha, backend="triton")
    torch.testing.assert_close(z, kernel.road_apply(x, theta, alpha, backend="python"))


@pytest.fixture
def peft_layers(folder, monkeypatch):
    """PEFT's layers can be kernelized, with this kernel on every device."""
    layer = pytest.importorskip("peft.tuners.road.layer", reason="the layer is PEFT's")
    monkeypatch.setattr(layer.Linear, "kernel_layer_name", "", raising=False)
    kernels.replace_kernel_forward_from_hub(layer.Linear, "RoadLinear")
    repository = kernels.LocalLayerRepository(folder, layer_name="RoadLinear")
    with kernels.use_kernel_mapping({"RoadLinear": {"cpu": repository, "cuda": repository}}, inherit_mapping=False):
        yield layer.Linear


def make_model(dtype=torch.float32):
    from peft import RoadConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)).to(dtype)
    configs = {"a": "road_1", "b": "road_4", "c": "road_2"}
    model = None
    for name, variant in configs.items():
        config = RoadConfig(variant=variant, group_size=16, target_modules=["0", "2"], init_weights=False)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return model


def is_ours(model, linear) -> bool:
    layers = [module for module in model.modules() if isinstance(module, linear)]
    return len(layers) == 2 and all("peft_linear" in layer.forward.__func__.__globals__ for layer in layers)


def test_training(peft_layers):
    x = torch.randn(4, 32)
    found = []
    for kernelized in (False, True):
        model = make_model()
        if kernelized:
            model = kernels.kernelize(model, mode=kernels.Mode.TRAINING, device="cpu", use_fallback=False)
        assert is_ours(model, peft_layers) == kernelized
        model(x).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs, ours = found
    assert len(theirs) == 4 and theirs.keys() == ours.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inference(peft_layers):
    model, x = make_model().eval(), torch.randn(5, 32)
    batch = {"adapter_names": ["b", "__base__", "a", "c", "b"]}

    def outputs():
        found = [model(x), model(x, **batch)]
        with model.disable_adapter():
            found.append(model(x))
        model.base_model.set_adapter(["a", "c"])
        found.append(model(x))
        model.merge_adapter()
        found.append(model(x))
        model.unmerge_adapter()
        model.base_model.set_adapter("a")
        return found

    theirs = outputs()
    model = kernels.kernelize(model, mode=kernels.Mode.INFERENCE, use_fallback=False)
    assert is_ours(model, peft_layers)
    for got, want in zip(outputs(), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        model(x, adapter_names=["a"])


@torch.no_grad()
def test_a_mixed_batch_on_bfloat16(peft_layers):
    """With float32 adapters, which PEFT's own code refuses."""
    model = make_model(torch.bfloat16).eval()
    kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu", use_fallback=False)
    x = torch.randn(3, 32).bfloat16()
    together = model(x, adapter_names=["a", "__base__", "a"])
    assert together.dtype == torch.bfloat16
    torch.testing.assert_close(together[::2], model(x[::2]), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_compiled(peft_layers):
    model, x = make_model(), torch.randn(4, 32)
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    assert is_ours(model, peft_layers)
    want = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), want)
