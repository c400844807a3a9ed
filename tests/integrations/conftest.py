"""Fixtures of the PEFT tests."""

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
