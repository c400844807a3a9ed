"""enable, disable and enabled: what they replace in PEFT, and that they restore it."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from peft.tuners.road import RoadModel
from peft.tuners.road import layer as peft_road
from peft.utils.other import AuxiliaryTrainingWrapper as HEAD
from support.defaults import MODES
from support.peft_models import first, layers, make_model, randomize
from support.problems import make_x
from torch._subclasses.fake_tensor import FakeTensorMode

from road_kernels.integrations import peft as road_peft
from road_kernels.integrations.peft import _model_call, _options, _switch, _versions

THEIRS = {
    (owner, name): vars(owner)[name]
    for owner, names in (
        (peft_road.Linear, ("forward", "_mixed_batch_forward", "merge", "unmerge", "__init__")),
        (peft_road.RoadLayer, ("update_layer", "reset_parameters", "__init__")),
        (peft_road, ("_apply_road", "_get_delta_weight", "_prepare_cols", "RoadLayer", "Linear")),
        (RoadModel, ("_enable_peft_forward_hooks", "_create_and_replace", "inject_adapter")),
        (HEAD, ("_mixed_batch_forward", "_check_forward_args", "__init__")),
    )
    for name in names
    if name in vars(owner)
}
HEAD_FORWARD = vars(HEAD)["forward"]


def replaced() -> set[str]:
    return {name for (owner, name), function in THEIRS.items() if vars(owner).get(name) is not function}


@pytest.fixture(autouse=True)
def _off():
    yield
    road_peft.disable()
    assert not replaced()
    assert vars(HEAD)["forward"] is HEAD_FORWARD
    assert not any(hasattr(owner, _model_call.NAMES) for owner in (peft_road.RoadLayer, HEAD))


def test_what_is_replaced():
    assert not replaced()
    road_peft.enable()
    assert replaced() == {
        "forward",
        "_mixed_batch_forward",
        "merge",
        "unmerge",
        "_apply_road",
        "_enable_peft_forward_hooks",
    }
    assert vars(HEAD)["forward"] is not HEAD_FORWARD
    for name in ("forward", "merge", "unmerge"):
        ours, theirs = vars(peft_road.Linear)[name], THEIRS[peft_road.Linear, name]
        assert (ours.__name__, ours.__qualname__, ours.__doc__) == (name, theirs.__qualname__, theirs.__doc__)


def test_twice_is_once():
    road_peft.disable()
    road_peft.enable()
    ours = peft_road.Linear.forward
    road_peft.enable()
    assert peft_road.Linear.forward is ours
    assert road_peft.is_enabled()
    road_peft.disable()
    road_peft.disable()
    assert not road_peft.is_enabled()


def test_contexts_nest_and_restore_what_was_there():
    with road_peft.enabled(inplace=True):
        with road_peft.enabled():
            assert not _options.inplace
        assert road_peft.is_enabled() and _options.inplace
    assert not road_peft.is_enabled() and not _options.inplace
    road_peft.enable()
    with road_peft.enabled(inplace=True):
        pass
    assert road_peft.is_enabled() and not _options.inplace
    with road_peft.enabled():
        road_peft.disable()
    assert road_peft.is_enabled()


def test_an_exception_inside_the_context_restores_too():
    with pytest.raises(ZeroDivisionError), road_peft.enabled():
        raise ZeroDivisionError
    assert not road_peft.is_enabled()


def test_models_made_before_during_and_after():
    x = make_x(3, 16)
    before = make_model()
    want = before(x)
    with road_peft.enabled():
        during = make_model()
        during.load_state_dict(before.state_dict())
        torch.testing.assert_close(before(x), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(during(x), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(during(x), want)  # made while enabled, then run by PEFT's own code


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_layers(copied):
    def through(model):
        if copied == "deepcopy":
            return copy.deepcopy(model)
        if copied == "pickle":
            return pickle.loads(pickle.dumps(model))
        torch.save(model, buffer := io.BytesIO())
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    model, x = make_model(("road_1", 64), ("road_4", 2)), make_x(3, 16)
    model.eval()
    with road_peft.enabled():
        want = model(x, adapter_names=["A", "B", "__base__"])
        inside = through(model)
        assert torch.equal(inside(x, adapter_names=["A", "B", "__base__"]), want)
        randomize(inside)
        assert torch.equal(model(x, adapter_names=["A", "B", "__base__"]), want)
    torch.testing.assert_close(
        through(model)(x, adapter_names=["A", "B", "__base__"]), want, rtol=1e-5, atol=1e-6
    )  # copied by PEFT's code from a model that ran on ours: it holds nothing of ours
    assert vars(first(inside)).keys() == vars(first(make_model())).keys()


def test_disable_keeps_code_that_replaced_ours():
    road_peft.enable()
    ours = peft_road.Linear.forward
    peft_road.Linear.forward = lambda self, x: ours(self, x)
    with pytest.raises(RuntimeError, match=r"Linear\.forward was replaced by other code"):
        road_peft.disable()
    assert road_peft.is_enabled()
    peft_road.Linear.forward = ours


def test_switching_in_the_middle_of_training():
    torch.manual_seed(0)
    model, x = make_model(), make_x(8, 16)
    other = copy.deepcopy(model)
    losses = {True: [], False: []}
    for switching, m in ((True, model), (False, other)):
        optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        for step in range(6):
            if switching and step % 2:
                road_peft.enable()
            loss = m(x).square().mean()
            road_peft.disable()  # backward runs after it
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[switching].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def other_forward(self, hidden):
    raise AssertionError


@pytest.mark.parametrize("what", ["arguments", "missing", "formula", "parameters"])
def test_an_unknown_peft_is_refused_in_one_sentence(monkeypatch, what):
    match what:
        case "arguments":
            monkeypatch.setattr(peft_road.Linear, "forward", other_forward)
        case "missing":
            monkeypatch.delattr(peft_road.Linear, "_mixed_batch_forward")
        case "formula":
            formula = peft_road._apply_road

            def changed(variant, group_size, road_theta, road_alpha, x):
                return formula(variant, group_size, -road_theta, road_alpha, x)

            monkeypatch.setattr(peft_road, "_apply_road", changed)
        case "parameters":
            monkeypatch.setattr(peft_road.RoadLayer, "adapter_layer_names", ("road_angles",))
    before = replaced()
    with pytest.raises(
        ImportError, match=f"does not know the RoAd layers of PEFT {_versions.peft.__version__}"
    ) as error:
        road_peft.enable()
    assert "\n" not in str(error.value)
    assert replaced() == before
    assert not road_peft.is_enabled() and not _switch._replaced
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["model", "head"])
def test_what_a_peft_lacks_is_named(monkeypatch, change):
    owner, name = (RoadModel, "_enable_peft_forward_hooks") if change == "model" else (HEAD, "_mixed_batch_forward")
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError, match=rf"{owner.__name__}\.{name}.* is missing"):
        road_peft.enable()
    monkeypatch.undo()


OTHER_MODES = {"FakeTensorMode": FakeTensorMode, "no_grad": torch.no_grad}


@pytest.mark.parametrize("mode", [*MODES, *OTHER_MODES])
def test_enable_under_any_default_or_mode(mode):
    model, x = make_model(("road_1", 64), ("road_4", 2)).eval(), make_x(3, 16)
    with road_peft.enabled():
        want = model(x), model(x, adapter_names=["A", "B", "__base__"])
    with {**MODES, **OTHER_MODES}[mode]():
        road_peft.enable()
        if mode not in ("meta", "FakeTensorMode"):
            assert torch.equal(model(x), want[0])
    assert torch.equal(model(x, adapter_names=["A", "B", "__base__"]), want[1])


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_nothing_is_imported_before_it_is_asked_for():
    code = """
import sys, types
import road_kernels
assert "peft" not in sys.modules and "road_kernels.integrations" not in sys.modules
for instead_of_peft in (None, types.ModuleType("peft")):  # without PEFT, and with one that has no RoAd
    sys.modules["peft"] = instead_of_peft
    try:
        import road_kernels.integrations.peft
    except ImportError as error:
        assert "needs PEFT 0.18 or newer" in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("imported")
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_compile_in_one_graph_and_switching_it():
    model = make_model(("road_1", 64), ("road_4", 64), ("road_2", 2))
    model.base_model.set_adapter(["A", "B", "C"])
    x = make_x(3, 16)
    ops = []

    def backend(graph, _):
        ops.append(sum(str(n.target) == "road_kernels.rotate.default" for n in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    want = compiled(x)
    assert ops == [0]
    with road_peft.enabled():
        torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-5)
        assert ops == [0, 2 * len(layers(model))]
        compiled(x).sum().backward()
    compiled(x)
    assert len(ops) == 2  # PEFT's graph again, without recompiling
