"""Small CPU operations, compiled ahead of time where there is a C++ compiler.

Around the products with weights a layer does many small things to its activations. As single PyTorch operations each
of them is a pass over memory and some microseconds of dispatch; compiled by Inductor, a chain is one pass, one call.
What is compiled for one machine is kept on disk, so it is compiled once; a start that finds it loads it in
milliseconds and imports no compiler. Until it is there, the same functions run as they are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

Key = tuple[Any, ...]  # what a variant is specialized to; torch.dtype, numbers, text and booleans
Runner = Callable[[list[torch.Tensor]], list[torch.Tensor]]
# A function of tensors, example inputs, and for each input the names of its dynamic dimensions
Example = tuple[Callable[..., Any], tuple[torch.Tensor, ...], tuple[dict[int, str], ...]]

FORMAT = 1  # of what is kept on disk; count it up when an operation changes its meaning


class CompiledOp:
    """Variants of one operation that are ready.

    Args:
        module: where the operation's file can be imported from, with this object in it as ``name``.
        example: for a key, what to compile.
    """

    def __init__(self, module: str, name: str, example: Callable[..., Example]) -> None:
        self.module, self.name, self.example = module, name, example
        self._ready: dict[Key, Runner] = {}
        self.get = self._ready.get

    def add(self, key: Key, runner: Runner) -> None:
        """``runner`` computes this variant from now on."""
        self._ready[key] = runner

    def forget(self) -> None:
        """Run everything as it is written."""
        self._ready.clear()


Variant = tuple[CompiledOp, Key]


class Compiler:
    """Brings the variants that an engine can use to life.

    Args:
        variants: those; what earlier runs have compiled is loaded at once.
        num_threads: of the engine's computations.
    """

    def __init__(self, variants: Iterable[Variant], num_threads: int) -> None:
        self._directory, self._num_threads = _directory(num_threads), num_threads
        wanted = dict.fromkeys(variants)
        self.missing = [v for v in wanted if v[0].get(v[1]) is None and not _load(_path(self._directory, *v), *v)]
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def start(self) -> None:
        """Compile what is missing beside the engine; each variant is used as soon as it is there."""
        if self.missing and _has_compiler():
            logger.info("compiling %d small operations for this CPU in the background, once", len(self.missing))
            threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Compile what is missing, in a process of its own; each variant is used from when it is there."""
        if not self.missing:
            return
        orders = [
            (op.module, op.name, _spelled(key), str(_path(self._directory, op, key))) for op, key in self.missing
        ]
        command = [sys.executable, "-m", "optimized.compiled", str(self._num_threads)]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self._child.stdin and self._child.stdout and self._child.stderr
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(orders))
            self._child.stdin.close()
        for _ in self._child.stdout:  # a line for each that is done
            variant = self.missing.pop(0)
            _load(_path(self._directory, *variant), *variant)
        complaint = self._child.stderr.read().strip().splitlines()
        if self._child.wait() and not self._closed:
            last = complaint[-1] if complaint else "no message"
            logger.warning("small operations cannot be compiled here and run as they are: %s", last)

    def close(self) -> None:
        """End a compilation under way."""
        self._closed = True
        if self._child is not None:
            self._child.kill()


def _load(path: Path, op: CompiledOp, key: Key) -> bool:
    if not path.exists():
        return False
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    except RuntimeError as error:
        logger.warning("%s cannot be loaded and will be compiled again: %s", path, str(error).splitlines()[0])
        path.unlink(missing_ok=True)
        return False
    op.add(key, loader.boxed_run)
    return True


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _directory(num_threads: int) -> Path:
    """Of variants for this machine, this PyTorch and so many threads."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "tandem" / f"{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}-{num_threads}".lower()


def _path(directory: Path, op: CompiledOp, key: Key) -> Path:
    digest = hashlib.sha256(repr((FORMAT, sys.version_info[:2], key)).encode()).hexdigest()[:16]
    return directory / f"{op.name}-{digest}.pt2"


def _spelled(key: Key) -> list[Any]:
    return [str(part) if isinstance(part, torch.dtype) else part for part in key]


def _key(spelled: list[Any]) -> Key:
    return tuple(getattr(torch, p[6:]) if isinstance(p, str) and p.startswith("torch.") else p for p in spelled)


def _build(op: CompiledOp, key: Key, path: Path, num_threads: int) -> None:
    """Compile one variant into ``path``; another process may be doing the same."""
    import torch._inductor
    from torch._inductor import config

    function, inputs, dynamic = op.example(*key)
    dims = {name: torch.export.Dim(name, min=1) for sizes in dynamic for name in sizes.values()}
    shapes = tuple({i: dims[name] for i, name in sizes.items()} for sizes in dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory, torch.no_grad():
        with config.patch({"cpp.threads": num_threads, "size_asserts": False, "nan_asserts": False}):
            program = torch.export.export(_Module(function), inputs, dynamic_shapes=(shapes,))
            built = torch._inductor.aoti_compile_and_package(program, package_path=f"{directory}/{path.name}")
        os.replace(built, path)


class _Module(torch.nn.Module):
    """What ``torch.export`` takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._function(*inputs)


def main() -> None:
    """Build the variants that standard input names, without getting in the way of anyone else."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = directory
        for module, name, spelled, path in json.load(sys.stdin):
            if not Path(path).exists():
                _build(getattr(import_module(module), name), _key(spelled), Path(path), int(sys.argv[1]))
            print(path, flush=True)


if __name__ == "__main__":
    main()
