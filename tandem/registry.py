"""The engines by name. The only module that knows them; each is imported when it is built."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from tandem.config import EngineConfig
from tandem.engine import Engine
from tandem.errors import ConfigError

ENGINES = {
    "optimized": ("optimized.engine", "OptimizedEngine"),
    "reference": ("reference.engine", "ReferenceEngine"),
}

ProgressCallback = Callable[[float], None]


def check_backend(name: str) -> None:
    """Accept ``auto`` and the engines' names.

    Raises:
        ConfigError: there is no such engine.
    """
    if name not in ("auto", *ENGINES):
        raise ConfigError("--backend", f"{name!r} is not one of auto, {', '.join(ENGINES)}")


def create_engine(config: EngineConfig, on_progress: ProgressCallback | None = None) -> Engine:
    """Build the engine that ``config.backend`` names; loading weights calls ``on_progress`` with a share in [0, 1].

    Raises:
        ConfigError: there is no such engine, or it cannot honour the configuration.
        CheckpointError: the weights cannot be loaded.
    """
    check_backend(config.backend)
    # Compute threads that spin while they wait fight with every other process for the cores: on a busy machine a
    # small model is six times slower for it. Read when torch is loaded; whoever has set it knows better.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, name = ENGINES[_best_here() if config.backend == "auto" else config.backend]
    engine: Engine = getattr(import_module(module), name)(config, on_progress)
    return engine


def _best_here() -> str:
    """The optimized engine, except on machines with a GPU, which it cannot use yet."""
    import torch

    return "reference" if torch.cuda.is_available() else "optimized"
