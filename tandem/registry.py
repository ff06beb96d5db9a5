"""The engines by name. The only module that knows them; each is imported when it is built."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import tandem
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


def check_own(package: str, option: str) -> None:
    """Make sure that a package of ours is the one that an import would find, without importing it.

    Raises:
        ConfigError: something else goes by its name, for instance a folder beside the script that runs.
    """
    spec = find_spec(package)
    home = Path(tandem.__file__).parents[1]
    if spec is None or spec.origin is None or Path(spec.origin).parents[1] != home:
        where = spec.origin or next(iter(spec.submodule_search_locations or ()), None) if spec else None
        raise ConfigError(option, f"another module named {package!r} hides Tandem's own: {where}; rename or move it")


def create_engine(config: EngineConfig, on_progress: ProgressCallback | None = None) -> Engine:
    """Build the engine that ``config.backend`` names; loading weights calls ``on_progress`` with a share in [0, 1].

    Raises:
        ConfigError: there is no such engine, or it cannot honour the configuration.
        CheckpointError: the weights cannot be loaded.
    """
    check_backend(config.backend)
    # How long compute threads spin before they sleep. GNU OpenMP's default fights with every other process for the
    # cores: on a busy machine a small model is several times slower for it. Sleeping at once halves the speed of a
    # quiet one. Read when torch is loaded; whoever has set either variable knows better.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # PyTorch then asks for huge pages for tensors of 2 MB or more: fewer page faults and TLB misses. Read once, too.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    module, name = ENGINES[_best_here() if config.backend == "auto" else config.backend]
    check_own(module.partition(".")[0], "--backend")
    engine: Engine = getattr(import_module(module), name)(config, on_progress)
    return engine


def _best_here() -> str:
    """The optimized engine wherever it can run: on a CPU, and on a GPU with Triton."""
    import torch

    return "reference" if torch.cuda.is_available() and find_spec("triton") is None else "optimized"
