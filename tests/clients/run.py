"""Clients that others wrote, against our server: ``make clients ARGS="--backend optimized js"``.

Each suite has an environment of its own, made by ``make clients``, and finds the server through ``TANDEM_URL``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.server.process import ServerProcess

FOLDER = Path(__file__).parent
PYTEST = (".venv/bin/python", "-m", "pytest", "-c", "../pytest.ini", "--confcutdir", ".", ".")
SUITES = {
    "js": ("node", "--test", "--test-reporter=spec"),
    "python": PYTEST,
    "python_openai2": PYTEST,
}


def main() -> int:
    """The number of suites that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"all, if none is named: {', '.join(SUITES)}")
    parser.add_argument("--backend", action="append", choices=["optimized", "reference"], help="both, if not given")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"there is no suite {', '.join(sorted(unknown))}")
    failed = []
    for backend in options.backend or ["optimized", "reference"]:
        with ServerProcess("", "--enable-ollama-api", "--backend", backend) as server:
            for suite in options.suites or SUITES:
                print(f"== {suite}, {backend} backend", flush=True)
                environment = {**os.environ, "TANDEM_URL": server.url}
                if subprocess.run(SUITES[suite], cwd=FOLDER / suite, env=environment).returncode:
                    failed.append(f"{suite} ({backend})")
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
