"""Options of ``tandem serve`` about what is seen of it, logs, metrics and the page, and about middleware."""

from __future__ import annotations

import argparse
from typing import Any

from tandem.cli.parser import count, json_profiler_config
from tandem.errors import ConfigError

ON_OR_OFF = argparse.BooleanOptionalAction


def add_frontend_options(parser: argparse.ArgumentParser) -> None:
    """Register them."""
    add = parser.add_argument_group("logs, metrics, page, middleware").add_argument
    add("--enable-log-requests", action=ON_OR_OFF, default=False, help="log each request's parameters and prompt")
    add("--disable-log-requests", action=ON_OR_OFF, default=None, help="the opposite, which is the default")
    add("--enable-log-outputs", action=ON_OR_OFF, default=False, help="with --enable-log-requests: log answers, too")
    add("--max-log-len", type=count, metavar="N", help="characters of a logged prompt or answer")
    add(
        "--disable-access-log-for-endpoints",
        metavar="PATHS",
        default="",
        help="paths whose requests are not logged, such as /health,/metrics",
    )
    add("--enable-metrics", action=ON_OR_OFF, default=True, help="measure, and answer /metrics (default: on)")
    add("--disable-log-stats", action=ON_OR_OFF, default=False, help="the same as --no-enable-metrics")
    add("--metrics-port", type=int, metavar="N", help="answer /metrics there alone; 0 lets the system pick")
    add("--otlp-traces-endpoint", metavar="URL", help="send traces to a collector there (needs the extra otel)")
    add("--enable-server-load-tracking", action=ON_OR_OFF, default=True, help="answer /load (default: on)")
    add("--disable-ui", action=ON_OR_OFF, default=False, help="no page to chat with the model at /")
    add(
        "--profiler-config",
        type=json_profiler_config,
        metavar="JSON",
        help='/start_profile and /stop_profile, such as {"profiler": "torch", "torch_profiler_dir": "/tmp/profiles"}',
    )
    add(
        "--middleware",
        action="append",
        default=[],
        metavar="PATH",
        help="package.module.name of an ASGI class, or of an async function (request, call_next); repeatable",
    )


def frontend_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of ``ServerConfig`` that these options say.

    Raises:
        ConfigError: they contradict each other.
    """
    logs, disabled = arguments.enable_log_requests, arguments.disable_log_requests
    if logs and disabled:
        raise ConfigError("--disable-log-requests", "contradicts --enable-log-requests")
    paths = arguments.disable_access_log_for_endpoints.split(",")
    return {
        "enable_log_requests": logs or disabled is False,
        "enable_metrics": arguments.enable_metrics and not arguments.disable_log_stats,
        "middleware": tuple(arguments.middleware),
        "quiet_paths": tuple(path.strip() for path in paths if path.strip()),
    }
