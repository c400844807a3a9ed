"""Fixtures of the PEFT tests, and of those of served models."""

import functools

import pytest


@pytest.fixture
def calls(monkeypatch):
    """Records the names of our functions that PEFT's layers call."""
    from road_kernels.integrations.peft import _forward  # needs PEFT, as the tests do

    made = []
    for name in ("road_apply", "rotate"):
        function = getattr(_forward, name)
        monkeypatch.setattr(_forward, name, lambda *a, f=function, n=name, **kw: made.append(n) or f(*a, **kw))
    return made


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """checkpoints(family): the folder of the adapters of support.served_models, made once."""
    from support.served_models import save_adapters

    return functools.cache(lambda family: save_adapters(tmp_path_factory.mktemp(family), family))
