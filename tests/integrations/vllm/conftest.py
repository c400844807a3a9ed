"""vLLM in this process, and what a test needs to speak to it. `make test-vllm` installs it and runs these tests."""

import importlib.util
import os
from importlib.metadata import entry_points

import pytest

REQUIRED = os.environ.get("ROAD_KERNELS_REQUIRE_VLLM") == "1"
MISSING = "vLLM is not installed: make test-vllm installs it"
# Before vLLM is imported.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine is in this process, where a test can look at it
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
)


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is not None:
        if "road" not in {plugin.name for plugin in entry_points(group="vllm.general_plugins")}:
            # Its engine would wait for adapters for ever.
            raise pytest.UsageError("vLLM does not find its plugin: does an old road_kernels.egg-info hide it here?")
        return
    if REQUIRED:
        raise pytest.UsageError(MISSING)
    for item in items:
        if "integrations/vllm" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    from support import vllm_models

    return vllm_models.make_models(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory):
    from support import vllm_models

    return vllm_models.make_models(tmp_path_factory.mktemp("qwen2"), "qwen2")
