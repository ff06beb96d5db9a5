"""The engines by name. The only module that knows them; each is imported when it is built."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from tandem.config import EngineConfig
from tandem.engine import Engine
from tandem.errors import ConfigError

ENGINES = {"reference": ("reference.engine", "ReferenceEngine")}
AUTO_ORDER = ("reference",)

ProgressCallback = Callable[[float], None]


def check_backend(name: str) -> str:
    """The engine's name that ``--backend`` stands for.

    Raises:
        ConfigError: there is no such engine.
    """
    if name == "auto":
        return AUTO_ORDER[0]
    if name not in ENGINES:
        raise ConfigError("--backend", f"{name!r} is not one of auto, {', '.join(ENGINES)}")
    return name


def create_engine(config: EngineConfig, on_progress: ProgressCallback | None = None) -> Engine:
    """Build the engine that ``config.backend`` names; loading weights calls ``on_progress`` with a share in [0, 1].

    Raises:
        ConfigError: there is no such engine, or it cannot honour the configuration.
        CheckpointError: the weights cannot be loaded.
    """
    module, name = ENGINES[check_backend(config.backend)]
    engine: Engine = getattr(import_module(module), name)(config, on_progress)
    return engine
