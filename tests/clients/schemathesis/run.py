"""Requests drawn from ``/openapi.json`` by schemathesis: ``make schemathesis ARGS="--backend optimized"``.

Both backends, every optional route on, a key asked for. What is checked, and what is not and why, stands in
``schemathesis.toml``. The server must be healthy and idle at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.server.process import ServerProcess

FOLDER = Path(__file__).parent
KEY, MODEL = "secret", "org/tiny"
OPTIONS = (
    "--served-model-name", MODEL, "--api-key", KEY, "--enable-ollama-api", "--enable-dev-mode",
    "--enable-tokenizer-info-endpoint",
)  # fmt: skip
RUN = (".venv/bin/schemathesis", "run", "--phases", "coverage,fuzzing,stateful", "--no-color", "--no-shrink")


def main() -> int:
    """The number of backends on which something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=["optimized", "reference"], help="both, if not given")
    parser.add_argument("--seconds", type=int, help="draw for so long, a backend; else once through")
    parser.add_argument("--examples", type=int, default=25, help="of each operation, beside the systematic cases")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    drawn = ["--max-examples", str(options.examples), "--seed", str(options.seed)]
    if options.seconds:
        drawn += ["--max-time", str(options.seconds)]
    failed = []
    for backend in options.backend or ["optimized", "reference"]:
        print(f"== {backend} backend", flush=True)
        with ServerProcess("", *OPTIONS, "--backend", backend) as server:
            environment = {**os.environ, "TANDEM_KEY": KEY, "TANDEM_MODEL": MODEL}
            command = [*RUN, *drawn, server.url + "/openapi.json"]
            status = subprocess.run(command, cwd=FOLDER, env=environment).returncode
            if status or httpx.get(server.url + "/health", timeout=60).status_code != 200:
                failed.append(backend)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
