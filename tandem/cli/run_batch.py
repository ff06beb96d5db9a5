"""``tandem run-batch``: a file of requests to a file of answers, with the whole server in this process, unheard."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec

from server.config import ServerConfig
from tandem.cli.parser import count
from tandem.cli.serve import add_serve_options, server_config
from tandem.errors import ConfigError

LISTENING = {
    "host": "--host", "port": "--port", "uds": "--uds", "ssl_keyfile": "--ssl-keyfile", "root_path": "--root-path",
    "ssl_ca_certs": "--ssl-ca-certs", "metrics_port": "--metrics-port", "allowed_origins": "--allowed-origins",
    "allowed_methods": "--allowed-methods", "allowed_headers": "--allowed-headers",
    "allow_credentials": "--allow-credentials", "http_timeout": "--http-timeout",
    "shutdown_timeout": "--shutdown-timeout", "files_dir": "--files-dir", "max_files_bytes": "--max-files-bytes",
    "max_batch_lines": "--max-batch-lines",
}  # fmt: skip


def add_command(commands: Any) -> None:
    """Register ``run-batch``, which takes all options of ``serve``."""
    parser = commands.add_parser("run-batch", help="answer a file of requests in OpenAI's batch format")
    add = parser.add_argument_group("batch").add_argument
    add("-i", "--input-file", required=True, metavar="FILE", help="JSON lines: custom_id, method, url, body")
    add("-o", "--output-file", required=True, metavar="FILE", help="an answer a line, in the same order")
    add("--max-concurrent-lines", type=count, default=256, metavar="N", help="at work at once (default: %(default)s)")
    add_serve_options(parser)
    parser.set_defaults(run=run)


def _unheard(config: ServerConfig, arguments: argparse.Namespace) -> ServerConfig:
    """The configuration of a server that nobody can reach; what only clients could notice is refused."""
    default = ServerConfig()
    for name, option in LISTENING.items():
        if getattr(config, name) != getattr(default, name):
            raise ConfigError(option, "a batch is answered without listening anywhere")
    if arguments.api_key:
        raise ConfigError("--api-key", "a batch is answered without listening anywhere")
    return msgspec.structs.replace(config, api_keys=(), enable_metrics=False)


def run(arguments: argparse.Namespace) -> int:
    """Answer all lines; a line that fails says so in its answer, and is no failure of the command."""
    if arguments.max_concurrent_lines < 1:
        raise ConfigError("--max-concurrent-lines", "must be at least 1")
    config = _unheard(server_config(arguments), arguments)
    source, target = Path(arguments.input_file), Path(arguments.output_file)
    if not source.is_file():
        raise ConfigError("--input-file", f"there is no file {source}")
    if target.exists() and target.samefile(source):
        raise ConfigError("--output-file", "is the input file")
    from server.files.offline import run_batch
    from server.operations.logs import configure_logging

    configure_logging(config)
    logging.getLogger("tandem").setLevel("INFO")
    try:
        with source.open("rb") as lines, target.open("wb") as answers:
            summary = asyncio.run(run_batch(config, lines, answers, arguments.max_concurrent_lines))
    except OSError as error:
        raise ConfigError("--output-file", f"{error.filename or target}: {error.strerror}") from error
    print(f"{summary.num_lines} lines, {summary.num_failed} of them failed", file=sys.stderr)
    return 0
