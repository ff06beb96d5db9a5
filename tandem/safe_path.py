"""Where Python processes that we start look for modules: where we found ours, and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tandem


def environment_with_safe_path() -> dict[str, str]:
    """Our environment, with a search path on which a child finds the modules that we found, and no others."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(safe_path(sys.path))}


def safe_path(path: list[str]) -> list[str]:
    """``path`` without the working directory and the folder of the script that runs, and with ours.

    Python puts these two first for whoever starts it, so that any file there would pass for a module of the same
    name. The folder that holds this package stays even if it is one of them.
    """
    own = Path(tandem.__file__).parents[1]
    script = getattr(sys.modules["__main__"], "__file__", None)
    unsafe = {Path.cwd(), *([Path(script).resolve().parent] if script else [])} - {own.resolve()}
    absolute = [entry for entry in path if os.path.isabs(entry)]
    kept = [entry for entry in absolute if Path(entry).resolve() not in unsafe]
    return kept if str(own) in kept else [str(own), *kept]
