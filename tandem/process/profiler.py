"""Profiles of an engine's steps: ``torch.profiler`` in the engine's process, one trace file a profile."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import msgspec

from tandem.errors import ConfigError, EngineError, RequestError

logger = logging.getLogger(__name__)

OPTION = "--profiler-config"
_NOT_PROFILED = contextlib.nullcontext()


class ProfilerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is recorded, and where it is written; fields of vLLM's option of the same name.

    Attributes:
        profiler: which one; there is PyTorch's.
        torch_profiler_dir: directory of the trace files, made if it is not there.
        torch_profiler_with_stack: record which line of Python each operation comes from.
        torch_profiler_record_shapes: record the shapes of operations' inputs.
        torch_profiler_with_memory: record what operations allocate.
        torch_profiler_with_flops: estimate the floating-point operations.
        torch_profiler_use_gzip: compress the file.
        max_iterations: a profile of so many steps ends by itself, since it grows in memory with each.
    """

    profiler: Literal["torch"] = "torch"
    torch_profiler_dir: str
    torch_profiler_with_stack: bool = True
    torch_profiler_record_shapes: bool = False
    torch_profiler_with_memory: bool = False
    torch_profiler_with_flops: bool = False
    torch_profiler_use_gzip: bool = True
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        if not os.path.isabs(self.torch_profiler_dir):
            got = self.torch_profiler_dir[:100]
            raise ConfigError(OPTION, f"torch_profiler_dir must be an absolute path, got {got!r}")
        if self.max_iterations < 1:
            raise ConfigError(OPTION, f"max_iterations must be at least 1, got {self.max_iterations}")


class Profiler:
    """Takes profiles of an engine's steps, one at a time. Belongs to the thread that steps.

    Args:
        config: None takes none.
    """

    def __init__(self, config: ProfilerConfig | None) -> None:
        self._config = config
        self._running: Any = None  # a torch.profiler.profile
        self._num_steps = 0

    def start(self) -> None:
        """Begin a profile.

        Raises:
            RequestError: there is one already, or the server takes none.
            EngineError: its directory cannot be made.
        """
        config = self._config
        if config is None:
            raise RequestError(f"profiles need a server that runs with {OPTION}", None, "unsupported_parameter")
        if self._running is not None:
            raise RequestError("a profile is being taken already: stop it first", None)
        try:
            Path(config.torch_profiler_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"no profile can be written to {config.torch_profiler_dir}: {error.strerror}"
            ) from error
        from torch import cuda, profiler

        activities = [profiler.ProfilerActivity.CPU]
        if cuda.is_available():
            activities.append(profiler.ProfilerActivity.CUDA)
        running = profiler.profile(
            activities=activities,
            with_stack=config.torch_profiler_with_stack,
            record_shapes=config.torch_profiler_record_shapes,
            profile_memory=config.torch_profiler_with_memory,
            with_flops=config.torch_profiler_with_flops,
        )
        running.start()
        self._running, self._num_steps = running, 0

    def stop(self) -> None:
        """End the profile and write it, which may take long.

        Raises:
            RequestError: there is none.
            EngineError: it cannot be written.
        """
        if self._running is None:
            raise RequestError("no profile is being taken: start one, or it has ended by itself", None)
        assert self._config is not None
        running, self._running = self._running, None
        running.stop()
        ending = ".gz" if self._config.torch_profiler_use_gzip else ""
        name = f"tandem-{os.getpid()}-{time.time_ns()}.pt.trace.json{ending}"
        file = Path(self._config.torch_profiler_dir) / name
        try:
            running.export_chrome_trace(str(file))
        except (OSError, RuntimeError) as error:  # torch raises either
            raise EngineError(f"the profile cannot be written to {file}: {error}") from error
        logger.info("A profile of %d steps is in %s", self._num_steps, file)

    def step(self) -> AbstractContextManager[Any]:
        """Around a step, which has a name in the profile."""
        if self._running is None:
            return _NOT_PROFILED
        return self._record()

    @contextlib.contextmanager
    def _record(self) -> Any:
        from torch.profiler import record_function

        assert self._config is not None
        with record_function(f"step {self._num_steps}"):
            yield
        self._num_steps += 1
        if self._num_steps == self._config.max_iterations:
            self.close()

    def close(self) -> None:
        """End the profile if there is one; that it cannot be written is only logged."""
        if self._running is not None:
            try:
                self.stop()
            except EngineError as error:
                logger.error("%s", error)
