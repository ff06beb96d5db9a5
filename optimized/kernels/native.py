"""The CPU kernels written in C++: built once where there is a compiler, kept on disk, loaded in milliseconds.

Around the products with weights a layer does many small things to its activations. As single PyTorch operations each
of them is a pass over memory and some microseconds of dispatch; a kernel is one pass and one call. An engine owns a
``Library`` and gives it to whatever calls an op. As long as it is empty, or where nothing can build it, the ops'
twins run: the same operations in plain PyTorch.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILE = SOURCES / "compile_native.py"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
LINK = ("-shared", "-fPIC")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

INT, FLOAT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Signature(NamedTuple):
    """A function of the library, as an op declares it."""

    name: str
    arguments: tuple[Any, ...]


_signatures: list[Signature] = []


def declare(name: str, *arguments: Any) -> Signature:
    """Say once, when the op's module is imported, what the op will call."""
    _signatures.append(Signature(name, arguments))
    return _signatures[-1]


class Library:
    """The CPU kernels of one engine: empty until ``load``, and for ever if nobody calls it."""

    def __init__(self) -> None:
        self._functions: dict[str, Callable[..., None]] = {}
        self._waiting: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._loading = threading.Lock()  # held to become loaded, and to wait for it

    @property
    def is_loaded(self) -> bool:
        return bool(self._functions)

    def find(self, signature: Signature, dtype: torch.dtype | None = None) -> Callable[..., None] | None:
        """The function, or None if it is not there, or not for tensors of this type."""
        if dtype is not None and dtype not in TYPES:
            return None
        return self._functions.get(signature.name)

    def when_loaded(self, call: Callable[[], None]) -> None:
        """Call a method now, or in the thread that loads the functions; nothing is kept alive for it."""
        with self._loading:
            if not self.is_loaded:
                self._waiting.append(weakref.WeakMethod(call))
                return
        call()

    def load(self, path: Path) -> None:
        """Use the functions of a shared object.

        Raises:
            OSError, AttributeError: it cannot be loaded, or one is missing; the library is as it was.
        """
        loaded = ctypes.CDLL(str(path))
        functions = {}
        for name, arguments in _signatures:
            function = functions[name] = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        with self._loading:
            self._functions = functions
        for method in self._waiting:
            if (call := method()) is not None:
                call()
        self._waiting.clear()


class Build:
    """Fills a library: at once if an earlier run has built it, else when it is built."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
        self._path = _directory() / f"kernels-{self._digest()}.so"
        self._child: subprocess.Popen[str] | None = None
        self._closed = False
        self._ending = threading.Lock()  # held to begin, to load or to close, so that nothing happens after the end
        if os.path.exists(self._path):
            self._load()

    def start(self) -> None:
        """Build beside the engine what is missing; kernels are used as soon as they are there."""
        if not self._library.is_loaded and self._compiler:
            threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Build what is missing, and load it."""
        if self._library.is_loaded or not self._compiler:
            return
        sources = sorted(map(str, SOURCES.glob("*.cpp")))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            directory = tempfile.mkdtemp(dir=self._path.parent)
            try:
                made = f"{directory}/{self._path.name}"
                command = [self._compiler, *FLAGS, *LINK, *sources, "-o", made]
                complaint = self._compile([*command, "-fopenmp"], directory) and self._compile(command, directory)
                if complaint is None:
                    os.replace(made, self._path)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        except OSError as error:
            complaint = str(error)
        with self._ending:
            if self._closed:
                return
            if complaint is None:
                self._load()
                return
        logger.warning("CPU kernels cannot be built here; plain PyTorch does their work, slower: %s", complaint)

    def close(self) -> None:
        """End a build that is running."""
        with self._ending:
            self._closed = True
            if self._child is not None and self._child.stdin is not None:
                self._child.stdin.close()  # which ends the compiler, too

    def _compile(self, command: list[str], directory: str) -> str | None:
        """The compiler's complaint, if it has one; without OpenMP if it has no such thing."""
        with self._ending:
            if self._closed:
                return "closed"
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(COMPILE), directory, *command],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._child.stderr is not None
        errors = self._child.stderr.read()
        if self._child.wait() == 0:
            return None
        return next((line for line in errors.splitlines() if "error" in line), f"{command[0]} failed")

    def _load(self) -> None:
        try:
            self._library.load(self._path)
        except (OSError, AttributeError) as error:
            logger.warning("%s cannot be loaded; plain PyTorch does its work, slower: %s", self._path, error)

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
