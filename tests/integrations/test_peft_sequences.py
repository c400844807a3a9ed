"""Sequences of PEFT calls, drawn at random: after each one the model is what PEFT's own code makes of it in float64."""

import tempfile
import warnings
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.peft_models import BASE, VARIANTS, config, in_float64, make_model
from support.problems import make_x

from road_kernels.integrations import peft as road_peft

NAMES = "ABC"
ROWS = 4


class Twins:
    """A float32 model on the kernels, or by PEFT's code while ours is off, and a float64 copy by PEFT's code."""

    def __init__(self):
        self.model = make_model(("road_1", 16), width=32).eval()
        self.exact = in_float64(self.model)
        self.on, self.inplace = True, False
        self.x = make_x(ROWS, 16)

    @property
    def adapters(self) -> list[str]:
        return sorted(self.model.peft_config)

    @property
    def is_merged(self) -> bool:
        return any(getattr(m, "merged_adapters", None) for m in self.model.modules())

    def ours(self):
        return road_peft.enabled(inplace=self.inplace) if self.on else warnings.catch_warnings()

    def both(self, call):
        """call(model, x) on both; (results), or the same type of error from both."""
        results = []
        for model, x in ((self.model, self.x), (self.exact, self.x.double())):
            try:
                if model is self.model:
                    with self.ours():
                        results.append(call(model, x))
                else:
                    assert not road_peft.is_enabled()
                    results.append(call(model, x))
            except (ValueError, RuntimeError, KeyError) as error:
                results.append(type(error))
        return results

    def compare(self, call=lambda model, x: model(x)):
        with torch.no_grad():
            got, want = self.both(call)
        if isinstance(want, type) or isinstance(got, type):
            assert got is want
        else:
            # 32 roundings of the largest element, after merging and unmerging many times.
            atol = 32 * torch.finfo(torch.float32).eps * max(1.0, want.abs().max().item()) * 8
            torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def add(twins, draw):
    name = draw(st.sampled_from([n for n in NAMES if n not in twins.adapters] or list(NAMES)))
    adapter = config(draw(st.sampled_from(VARIANTS)), draw(st.sampled_from([2, 16, 32])))
    twins.both(lambda model, x: model.add_adapter(name, adapter))
    torch.manual_seed(len(twins.adapters))
    with torch.no_grad():
        for key, p in twins.model.named_parameters():
            if "road" in key and key.endswith(f".{name}") and not twins.is_merged:
                p.uniform_(*((-0.6, 0.6) if "theta" in key else (0.6, 1.4)))
    twins.exact.double()
    copy_adapters(twins)


def copy_adapters(twins):
    with torch.no_grad():
        values = dict(twins.model.named_parameters())
        for key, p in twins.exact.named_parameters():
            if "road" in key:
                p.copy_(values[key])


def activate(twins, draw):
    names = draw(st.lists(st.sampled_from(twins.adapters), min_size=1, max_size=2, unique=True))
    twins.both(lambda model, x: model.base_model.set_adapter(names))


def merge(twins, draw):
    safe = draw(st.booleans())
    names = draw(st.none() | st.lists(st.sampled_from(twins.adapters), min_size=1, max_size=2, unique=True))
    twins.both(lambda model, x: model.base_model.merge_adapter(names, safe_merge=safe))


def unmerge(twins, draw):
    twins.both(lambda model, x: model.base_model.unmerge_adapter())


def switch_layers(twins, draw):
    on = draw(st.booleans())
    name = "enable_adapter_layers" if on else "disable_adapter_layers"
    twins.both(lambda model, x: getattr(model.base_model, name)())


def disabled_block(twins, draw):
    def call(model, x):
        with model.disable_adapter():
            return model(x)

    twins.compare(call)


def delete(twins, draw):
    if len(twins.adapters) > 1 and not twins.is_merged:  # PEFT loses what is merged of it
        name = draw(st.sampled_from(twins.adapters))
        twins.both(lambda model, x: model.delete_adapter(name))


def mixed(twins, draw):
    names = draw(st.lists(st.sampled_from([*twins.adapters, BASE]), min_size=ROWS, max_size=ROWS))
    if not twins.is_merged:  # PEFT leaves its hooks on a model whose call has raised
        twins.compare(lambda model, x: model(x, adapter_names=names))


def train(twins, draw):
    def step(model, x):
        trained = [p for p in model.parameters() if p.requires_grad]
        if trained:
            model(x).square().mean().backward()
            torch.optim.SGD(trained, lr=0.05).step()
            model.zero_grad()

    if not twins.is_merged:  # what is merged would no longer be what is unmerged
        twins.both(step)
        with torch.no_grad():
            ours = dict(twins.model.named_parameters())
            for key, p in twins.exact.named_parameters():
                torch.testing.assert_close(ours[key].double(), p.data, rtol=1e-4, atol=1e-4)
        copy_adapters(twins)


def save_and_load(twins, draw):
    """A saved adapter, loaded over another one or as a new one."""
    source, name = draw(st.sampled_from(twins.adapters)), draw(st.sampled_from(NAMES))
    if twins.is_merged or name == source:
        return

    def call(model, x):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, selected_adapters=[source])
            if name in model.peft_config:
                model.delete_adapter(name)
            model.load_adapter(Path(folder, source), adapter_name=name)
            model.eval()

    twins.both(call)
    twins.exact.double()
    copy_adapters(twins)


def switch_ours(twins, draw):
    twins.on, twins.inplace = draw(st.booleans()), draw(st.booleans())


STEPS = [
    add,
    activate,
    merge,
    unmerge,
    switch_layers,
    disabled_block,
    delete,
    mixed,
    train,
    save_and_load,
    switch_ours,
]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_sequence_of_calls(data):
    torch.manual_seed(0)
    twins = Twins()
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=4, max_size=14)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of what is merged or unmerged already
            step(twins, data.draw)
            twins.compare()
