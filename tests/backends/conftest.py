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


@pytest.fixture
def on_target(monkeypatch):
    """Makes prepare.py plan for a GPU with 132 multiprocessors, and one of triton_aot.TARGETS otherwise."""
    from support.triton_aot import TARGETS, forget_launches

    from road_kernels.triton import plan, prepare

    def use(target: str):
        monkeypatch.setattr(prepare, "device_of", lambda index: plan.Device(132, TARGETS[target][2]))
        forget_launches()

    yield use
    forget_launches()
