"""The CPU kernels written in C++: built once where there is a compiler, kept on disk, loaded in milliseconds.

Around the products with weights a layer does many small things to its activations. As single PyTorch operations each
of them is a pass over memory and some microseconds of dispatch; a kernel is one pass and one call. Until the library
is there, or where nothing can build it, their twins run: the same operations in plain PyTorch.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
LINK = ("-shared", "-fPIC")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

INT, FLOAT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Function:
    """A function of the library.

    Attributes:
        run: it, or None as long as the library is not loaded.
    """

    def __init__(self, name: str, *arguments: Any) -> None:
        self._name, self._arguments = name, arguments
        self.run: Callable[..., None] | None = None
        _functions.append(self)

    def bind(self, library: ctypes.CDLL) -> None:
        """Use that of ``library``."""
        run = getattr(library, self._name)
        run.argtypes, run.restype = self._arguments, None
        self.run = run


_functions: list[Function] = []


def forget() -> None:
    """In this process twins run from now on."""
    for function in _functions:
        function.run = None


class Build:
    """Brings the library to life: at once if an earlier run has built it, else when it is built."""

    def __init__(self) -> None:
        self._compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
        self._path = _directory() / f"kernels-{self._digest()}.so"
        self._child: subprocess.Popen[str] | None = None
        self._closed = False
        self._ending = threading.Lock()  # held to begin, to bind or to close, so that nothing happens after the end
        self.is_loaded = os.path.exists(self._path) and self._load()

    def start(self) -> None:
        """Build beside the engine what is missing; kernels are used as soon as they are there."""
        if not self.is_loaded and self._compiler:
            threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Build what is missing, and load it."""
        if self.is_loaded or not self._compiler:
            return
        sources = sorted(map(str, SOURCES.glob("*.cpp")))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._path.parent) as directory:
                made = f"{directory}/{self._path.name}"
                command = [self._compiler, *FLAGS, *LINK, *sources, "-o", made]
                complaint = self._compile([*command, "-fopenmp"]) and self._compile(command)  # or with one thread
                if complaint is None:
                    os.replace(made, self._path)
        except OSError as error:
            complaint = str(error)
        with self._ending:
            if self._closed:
                return
            if complaint is None:
                self.is_loaded = self._load()
                return
        logger.warning("CPU kernels cannot be built here; plain PyTorch does their work, slower: %s", complaint)

    def close(self) -> None:
        """End a build under way."""
        with self._ending:
            self._closed = True
            if self._child is not None and self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGKILL)  # the compiler's own children, too

    def _compile(self, command: list[str]) -> str | None:
        """The compiler's complaint, if it has one."""
        with self._ending:
            if self._closed:
                return "closed"
            self._child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
            os.setpriority(os.PRIO_PGRP, self._child.pid, 10)  # it must not get in the way of anyone
        _, errors = self._child.communicate()
        if self._child.returncode == 0:
            return None
        return next((line for line in errors.splitlines() if "error" in line), f"{command[0]} failed")

    def _load(self) -> bool:
        try:
            library = ctypes.CDLL(str(self._path))
            for function in _functions:
                function.bind(library)
        except (OSError, AttributeError) as error:
            logger.warning("%s cannot be loaded; plain PyTorch does its work, slower: %s", self._path, error)
            forget()
            return False
        return True

    def _digest(self) -> str:
        """Of all that the library depends on."""
        parts = [repr((FLAGS, self._compiler, platform.machine(), torch.__version__, _cpu())).encode()]
        parts += [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _directory() -> Path:
    """The user's own, since what lies there is run; one for this process if the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
    except RuntimeError:
        directory = tempfile.mkdtemp(prefix="tandem-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return Path(directory)


def _cpu() -> str:
    """What this CPU can do: a home directory may be shared with other machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
