"""Where an engine's loop runs: in a process of its own, or in a thread of this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from tandem.process.exit_reason import count_oom_kills, describe
from tandem.process.messages import Built, Ending, FrameError, Start
from tandem.process.worker import STOP, EngineLoop, read_report, write_frame
from tandem.safe_path import environment_with_safe_path

OnBuilt = Callable[[], None]
OnEnd = Callable[[str, str], None]


class Launched(Protocol):
    """An engine's loop that has been started.

    Its constructor takes ``start``, ``on_built`` and ``on_end``. Both are called in a thread of its own, the latter
    once, with one line that completes "the engine process …" and with what the loop itself has said, if anything.
    """

    @property
    def process_id(self) -> int | None:
        """None for a thread."""
        ...

    def stop(self) -> None:
        """Ask it to end after its present step."""
        ...

    def kill(self, because: str) -> bool:
        """End it at once; False if that is impossible. ``because`` goes to ``on_end``."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so long."""
        ...


class EngineProcess:
    """A process that ends when its standard input does, so that it cannot outlive this one."""

    def __init__(self, start: Start, on_built: OnBuilt, on_end: OnEnd) -> None:
        self._on_built = on_built
        self._on_end = on_end
        self._killed_because = ""
        self._oom_kills = count_oom_kills()
        self._process = subprocess.Popen(
            worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment_with_safe_path()
        )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died already, which the watch will tell
            write_frame(self._process.stdin, start)
        self._watcher = threading.Thread(target=self._watch, name="engine-watch", daemon=True)
        self._watcher.start()

    @property
    def process_id(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    def stop(self) -> None:
        """As in ``Launched``."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(STOP)
            self._process.stdin.flush()

    def kill(self, because: str) -> bool:
        """As in ``Launched``."""
        self._killed_because = because
        self._process.kill()
        return True

    def wait(self, seconds: float) -> bool:
        """As in ``Launched``."""
        self._watcher.join(seconds)
        return not self._watcher.is_alive()

    def _watch(self) -> None:
        """Follow the reports to their end, which comes with the process's, however it dies."""
        process, message = self._process, ""
        assert process.stdin is not None and process.stdout is not None
        with process.stdout as reports, contextlib.suppress(FrameError):
            while (report := read_report(reports)) is not None:
                match report:
                    case Built():
                        self._on_built()
                    case Ending():
                        message = report.message
        status = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        num_oom_kills = count_oom_kills() - self._oom_kills
        self._on_end(describe(status, message, self._killed_because, num_oom_kills), message)


class EngineThread:
    """The same loop, over the same messages, in a thread of this process. It cannot be killed."""

    process_id = None

    def __init__(self, start: Start, on_built: OnBuilt, on_end: OnEnd) -> None:
        self._on_end = on_end
        self._loop = EngineLoop(start, on_built)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """As in ``Launched``."""
        self._loop.stop()

    def kill(self, because: str) -> bool:
        """As in ``Launched``: always False."""
        return False

    def wait(self, seconds: float) -> bool:
        """As in ``Launched``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        message = self._loop.run().message
        self._on_end(describe(0, message, "", 0), message)


def worker_command() -> list[str]:
    """The command line of an engine's process; ``-P`` keeps its working directory out of the search for modules."""
    return [sys.executable, "-P", "-m", "tandem.process.worker"]
