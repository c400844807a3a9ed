"""What the tests of Triton's kernels share."""

import pytest


@pytest.fixture
def constants(monkeypatch):
    """Sets constants of plan.py, so that little work takes as many programs and rounds as much work does."""
    from support.triton_aot import forget_launches

    from road_kernels.triton import plan

    def use(**values):
        for name, value in values.items():
            assert hasattr(plan, name)
            monkeypatch.setattr(plan, name, value)
        forget_launches()

    yield use
    forget_launches()
