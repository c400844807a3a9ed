"""Putting the subclasses where vLLM looks for its own classes."""

import logging

from ..._version import __version__
from . import _versions


def register() -> None:
    """The entry point ``vllm.general_plugins: road``. May be called repeatedly; never raises for a vLLM it cannot use.

    vLLM calls it without a guard: an exception would end the server, RoAd adapters or not.
    """
    logger = logging.getLogger(_versions.LOGGER)
    try:
        hooks = _versions.find()
    except ImportError as error:
        logger.warning("RoAd adapters are not available: %s", error)
        return
    from . import _layers, _managers, _resolver  # import vLLM

    if not issubclass(hooks.mixin.LRUCacheWorkerLoRAManager, _managers.RoadWorkerManager):
        hooks.mixin.LRUCacheWorkerLoRAManager = _managers.RoadWorkerManager
        hooks.lora_utils._all_lora_classes = tuple(map(_layers.with_rotation, hooks.lora_utils._all_lora_classes))
        logger.debug("road_kernels %s: RoAd adapters are available with --enable-lora", __version__)
        _resolver.register()
