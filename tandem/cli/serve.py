"""``tandem serve``: options to a ``ServerConfig``, nothing else."""

from __future__ import annotations

import argparse
import os
from typing import Any

from server.config import ServerConfig
from tandem.cli.foreign import add_foreign_options
from tandem.cli.frontend_options import add_frontend_options, frontend_fields
from tandem.cli.parser import Parser, byte_count, count, json_object, json_speculative_config, json_strings, seconds
from tandem.cli.vllm_options import FOREIGN
from tandem.config import (
    DTYPES,
    EXECUTOR_BACKENDS,
    LOAD_FORMATS,
    LOGPROBS_MODES,
    SCHEDULING_POLICIES,
    ModelOptions,
    SchedulerOptions,
)
from tandem.errors import ConfigError
from tandem.registry import ENGINES, check_backend
from tandem.text.parsers import registry

ON_OR_OFF = argparse.BooleanOptionalAction
KEY_VARIABLES = ("TANDEM_API_KEY", "VLLM_API_KEY")


def add_command(commands: Any) -> None:
    """Register ``serve`` and its options."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model. Without MODEL, the small demonstration model that comes with Tandem.",
    )
    add_serve_options(parser)
    parser.set_defaults(run=run)


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """All options of ``serve``."""
    add_model_options(parser)
    add_scheduler_options(parser)
    _add_server_options(parser)
    add_frontend_options(parser)
    add_foreign_options(parser, FOREIGN)


def serve_parser() -> Parser:
    """The parser of ``tandem serve`` alone."""
    commands = Parser(prog="tandem").add_subparsers()
    add_command(commands)
    parser: Parser = commands.choices["serve"]
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model, and how it is loaded."""
    parser.set_defaults(model_of_file="")
    add = parser.add_argument_group("model and engine").add_argument
    add("model", nargs="?", default=None, metavar="MODEL", help="directory or hub id")
    add("--model", dest="model_option", metavar="MODEL", help="the same, as an option")
    add("--backend", default="auto", metavar="NAME", help=f"auto, {', '.join(ENGINES)} (default: auto)")
    add("--tokenizer", metavar="MODEL", help="where the tokenizer is, if not with the model")
    add("--revision", help="branch, tag or commit on the hub")
    add("--download-dir", metavar="DIR", help="cache of the hub's files")
    add("--dtype", default="auto", metavar="TYPE", help=f"auto, {', '.join(DTYPES)} (default: the checkpoint's)")
    add("--max-model-len", default="auto", metavar="N", help="context in tokens, such as 8192 or 8k (default: auto)")
    add("--load-format", default="auto", metavar="FORMAT", help=f"{', '.join(LOAD_FORMATS)} (default: auto)")
    add("--hf-overrides", default="{}", metavar="JSON", type=json_object, help="replaces keys of config.json")
    add(
        "--generation-config",
        default="auto",
        metavar="SOURCE",
        help="sampling defaults: auto (the model's), none, or a directory (default: auto)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of dummy weights, and of seeds generated for requests without one (default: 0)",
    )
    add("--max-logprobs", type=int, default=20, metavar="N", help="a request's limit; -1 for none (default: 20)")
    add("--logprobs-mode", default="raw_logprobs", metavar="MODE", help=", ".join(LOGPROBS_MODES))
    add("--trust-remote-code", action=ON_OR_OFF, default=False, help="refused: no code of a checkpoint is ever run")


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``SchedulerOptions``."""
    add = parser.add_argument_group("scheduling (optimized engine)").add_argument
    default = SchedulerOptions()
    add(
        "--max-num-seqs",
        type=int,
        default=default.max_num_seqs,
        metavar="N",
        help="requests running at once (default: %(default)s)",
    )
    add(
        "--max-num-batched-tokens",
        type=int,
        default=default.max_num_batched_tokens,
        metavar="N",
        help="tokens computed in one step (default: %(default)s)",
    )
    add(
        "--block-size",
        type=int,
        default=default.block_size,
        metavar="N",
        help="tokens in a block of the KV cache (default: %(default)s)",
    )
    add(
        "--kv-cache-memory-bytes",
        type=byte_count,
        default=None,
        metavar="BYTES",
        help="such as 4G (default: what the requests can use, or half of the free memory; on a GPU see below)",
    )
    add(
        "--gpu-memory-utilization",
        type=float,
        default=None,
        metavar="SHARE",
        help="of the GPU's memory, for weights, cache and steps together (default: 0.9; refused without a GPU)",
    )
    add("--enforce-eager", action=ON_OR_OFF, default=False, help="no CUDA graphs, no CPU kernels in C++")
    add(
        "--enable-prefix-caching",
        action=ON_OR_OFF,
        default=default.enable_prefix_caching,
        help="reuse what was computed for requests that begin alike (default: on)",
    )
    add(
        "--enable-chunked-prefill",
        action=ON_OR_OFF,
        default=default.enable_chunked_prefill,
        help="compute long prompts over several steps (default: on)",
    )
    add(
        "--scheduling-policy",
        default=default.scheduling_policy,
        metavar="NAME",
        help=f"{', '.join(SCHEDULING_POLICIES)} (default: %(default)s)",
    )
    add(
        "--speculative-config",
        "-sc",
        type=json_speculative_config,
        default=None,
        metavar="JSON",
        help='verify guessed tokens, such as {"method": "ngram", "num_speculative_tokens": 5} (default: off)',
    )
    add(
        "--distributed-executor-backend",
        default=default.distributed_executor_backend,
        metavar="NAME",
        help=f"{', '.join(EXECUTOR_BACKENDS)}: run the model with the engine, or in its own process (default: uni)",
    )


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("server").add_argument
    default = ServerConfig()
    add("--host", default="0.0.0.0", help="(default: 0.0.0.0)")
    add("--port", type=int, default=8000, help="0 lets the system pick (default: 8000)")
    add("--uds", metavar="PATH", help="a Unix socket instead of host and port")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"one key; repeatable; also from {' or '.join(KEY_VARIABLES)}",
    )
    add(
        "--salt-prefix-cache-by-key",
        action=ON_OR_OFF,
        default=False,
        help="what is computed for one key's requests is not found by another's",
    )
    add(
        "--served-model-name",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME",
        help="names clients may use; the first is reported",
    )
    add("--chat-template", metavar="FILE_OR_TEXT", help="instead of the model's")
    add(
        "--trust-request-chat-template", action=ON_OR_OFF, default=False, help="let requests bring their own template"
    )
    add(
        "--allow-special-tokens-in-content",
        action=ON_OR_OFF,
        default=False,
        help="encode special tokens in messages as tokens, not as the text they are",
    )
    add(
        "--chat-template-content-format",
        default="auto",
        metavar="FORMAT",
        help="content as a string, or as openai's list of parts; auto tries what the template shows (default: auto)",
    )
    add(
        "--tool-call-parser",
        metavar="NAME",
        help=f"how the model writes calls: auto, none, {', '.join(registry.tool_format_names())} (default: auto)",
    )
    add(
        "--reasoning-parser",
        default="auto",
        metavar="NAME",
        help=f"how it writes thoughts: auto, none, {', '.join(registry.reasoning_format_names())} (default: auto)",
    )
    add("--tool-parser-plugin", metavar="FILE", help="Python file or module that registers further formats of calls")
    add("--reasoning-parser-plugin", metavar="FILE", help="the same for thoughts")
    add(
        "--enable-auto-tool-choice",
        action=ON_OR_OFF,
        default=False,
        help="tools may be called wherever their format is known; the option insists that --tool-call-parser says it",
    )
    add(
        "--response-store",
        metavar="FILE",
        help="where responses and conversations are kept; they survive restarts (default: in memory)",
    )
    add("--files-dir", metavar="DIR", help="where files and batches are kept over restarts (default: until the end)")
    add("--max-files-bytes", type=count, default=default.max_files_bytes, metavar="N", help="(default: %(default)s)")
    add(
        "--max-batch-lines",
        type=count,
        default=default.max_batch_lines,
        metavar="N",
        help="lines of batches that are answered at once (default: %(default)s)",
    )
    add("--response-role", default="assistant", metavar="ROLE", help="(default: assistant)")
    add("--enable-ollama-api", action=ON_OR_OFF, default=False, help="answer below /api as Ollama does")
    add("--ssl-keyfile", metavar="FILE")
    add("--ssl-certfile", metavar="FILE")
    add("--ssl-ca-certs", metavar="FILE")
    add("--root-path", default="", metavar="PATH", help="prefix under which a proxy shows the server")
    for name in ("origins", "methods", "headers"):
        add(f"--allowed-{name}", type=json_strings, default=("*",), metavar="JSON", help='CORS (default: ["*"])')
    add("--allow-credentials", action=ON_OR_OFF, default=False, help="CORS")
    add(
        "--enable-request-id-headers",
        action=ON_OR_OFF,
        default=default.enable_request_id_headers,
        help="answer with X-Request-Id (default: on)",
    )
    add(
        "--enable-dev-mode",
        action=ON_OR_OFF,
        default=os.environ.get("VLLM_SERVER_DEV_MODE") == "1",
        help="routes that pause the server, let the engine sleep, and tell its configuration",
    )
    add("--enable-tokenizer-info-endpoint", action=ON_OR_OFF, default=False, help="answer /tokenizer_info")
    add("--disable-fastapi-docs", action=ON_OR_OFF, default=False, help="no /docs and /openapi.json")
    add("--uvicorn-log-level", default="info", choices=("critical", "error", "warning", "info", "debug", "trace"))
    add("--disable-uvicorn-access-log", dest="disable_access_log", action=ON_OR_OFF, default=False)
    add(
        "--shutdown-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds for open requests after a first SIGTERM (default: 60)",
    )
    add(
        "--disable-frontend-multiprocessing",
        dest="in_process_engine",
        action=ON_OR_OFF,
        default=False,
        help="run the engine in a thread of the server",
    )
    add(
        "--max-engine-restarts",
        type=count,
        default=3,
        metavar="N",
        help="within ten minutes, of an engine that has died; then the server ends with status 70 (default: 3)",
    )
    add(
        "--engine-stall-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds of silence or within one step after which the engine is replaced; 0 for never (default: 60)",
    )
    add(
        "--engine-address",
        metavar="ADDRESS",
        help="tcp://HOST:PORT for the engine, encrypted; takes the next port, too (default: a Unix socket)",
    )
    add(
        "--max-num-queued-reqs",
        dest="max_queued_requests",
        type=count,
        default=default.max_queued_requests,
        metavar="N",
        help="unfinished choices above which new requests are refused; 0 for no limit (default: %(default)s)",
    )
    add(
        "--max-num-queued-tokens",
        dest="max_queued_tokens",
        type=count,
        default=default.max_queued_tokens,
        metavar="N",
        help="the same for the tokens of unfinished prompts (default: %(default)s)",
    )
    add(
        "--http-timeout",
        type=seconds,
        default=default.http_timeout,
        metavar="S",
        help="seconds a client may take to send a head, to go on with a body or to read on (default: %(default)g)",
    )
    add("--config", metavar="FILE", help="YAML file of these options; the command line wins")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends the server."""
    config = server_config(arguments)
    from server.run import serve  # after the options, so that a wrong one is refused at once

    status: int = serve(config)
    return status


def server_config(arguments: argparse.Namespace) -> ServerConfig:
    """The configuration that parsed arguments mean.

    Raises:
        ConfigError: an option is malformed or contradicts another.
    """
    for option in ("tool_parser_plugin", "reasoning_parser_plugin"):
        if (plugin := getattr(arguments, option)) is not None:
            registry.load_plugin(plugin, f"--{option.replace('_', '-')}")
    options = vars(arguments) | {
        "model": model_options(arguments),
        "api_keys": _api_keys(arguments.api_key),
        "served_model_names": _served_model_names(arguments),
        **frontend_fields(arguments),
    }
    return ServerConfig(**_fields(ServerConfig, options))


def _api_keys(given: list[str]) -> tuple[str, ...]:
    """Those of the command line, else those of the environment. A file of secrets ends in a newline: ends are cut."""
    variables = [(name, os.environ[name]) for name in KEY_VARIABLES if name in os.environ]
    keys = [(name, key.strip()) for name, key in [("--api-key", key) for key in given] or variables]
    for name, key in keys:
        if not key or not key.isprintable():
            raise ConfigError(name, "a key must not be empty, nor hold control characters")
    return tuple(key for _, key in keys)


def _served_model_names(arguments: argparse.Namespace) -> tuple[str, ...]:
    groups: list[list[str]] = arguments.served_model_name
    names = tuple(name for group in groups for name in group)
    if groups and not _model(arguments) and (len(groups[-1]) > 1 or os.path.exists(names[-1])):
        message = f"{names[-1]!r} counts as a name, and no model is left: write the model first, or --model MODEL"
        raise ConfigError("--served-model-name", message)
    if not all(name.strip() and name.isprintable() for name in names):
        raise ConfigError("--served-model-name", "a name must not be empty, nor hold control characters")
    return names


def model_options(arguments: argparse.Namespace) -> ModelOptions:
    """The part of them that is about the model.

    Raises:
        ConfigError: an option is malformed or contradicts another.
    """
    if arguments.model and arguments.model_option:
        raise ConfigError("--model", "the model is given twice")
    check_backend(arguments.backend)
    return ModelOptions(**_fields(ModelOptions, vars(arguments) | {"model": _model(arguments)}))


def _model(arguments: argparse.Namespace) -> str:
    return arguments.model or arguments.model_option or arguments.model_of_file or ""


def _fields(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in kind.__struct_fields__ if name in options}  # type: ignore[attr-defined]
