"""Why a process has died, in words for its user."""

from __future__ import annotations

import signal
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def describe(exit_status: int, message: str, killed_because: str, num_oom_kills: int) -> str:
    """One line about an engine's process that has ended; completes "the engine process …".

    Args:
        exit_status: as ``subprocess`` tells it: negative for a signal.
        message: what the process itself said last.
        killed_because: why we killed it, if we did.
        num_oom_kills: how many processes the system has killed for want of memory since this one began.
    """
    if killed_because:
        return f"{killed_because} and was ended"
    if message:
        return f"has failed: {message}"
    if exit_status >= 0:
        return f"has ended unexpectedly with status {exit_status}"
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    if exit_status == -signal.SIGKILL and num_oom_kills:
        return f"was killed ({name}), probably by the system for want of memory"
    return f"was killed ({name})"


def count_oom_kills() -> int:
    """How many processes the system has killed for want of memory, in our control group and on the whole machine.

    Only its growth means anything: the same kill may be counted in several places. 0 where nothing tells.
    """
    return sum(_read_counter(file) for file in _counters())


def _counters() -> list[Path]:
    """Files with a line ``oom_kill N``: of the kernel and of our control group.

    Within a container the group's files stand at the root of the mount, outside it under the group's path.
    """
    group = _group_of_memory()
    return [
        Path("/proc/vmstat"),
        *(_CGROUPS / path / "memory.events" for path in ("", group)),  # version 2
        *(_CGROUPS / "memory" / path / "memory.oom_control" for path in ("", group)),  # version 1
    ]


def _group_of_memory() -> str:
    """Path of the control group that accounts for our memory, without a slash before it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    groups = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    return groups.get("memory", groups.get("", ""))


def _read_counter(file: Path) -> int:
    try:
        fields = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(field[1]) for field in fields if len(field) == 2 and field[0] == "oom_kill")
