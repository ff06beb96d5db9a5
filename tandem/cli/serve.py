"""``tandem serve``: options to a ``ServerConfig``, nothing else."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from server.config import ServerConfig
from tandem.config import DTYPES, LOAD_FORMATS, LOGPROBS_MODES, SCHEDULING_POLICIES, ModelOptions, SchedulerOptions
from tandem.errors import ConfigError
from tandem.registry import ENGINES, check_backend

KEY_VARIABLES = ("TANDEM_API_KEY", "VLLM_API_KEY")


def add_command(commands: Any) -> None:
    """Register ``serve`` and its options."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model. Without MODEL, the small demonstration model that comes with Tandem.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_scheduler_options(parser)
    _add_server_options(parser)
    parser.set_defaults(run=run)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model, and how it is loaded."""
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
    add("--hf-overrides", default="{}", metavar="JSON", type=_json_object, help="replaces keys of config.json")
    add(
        "--generation-config",
        default="auto",
        metavar="SOURCE",
        help="sampling defaults: auto (the model's), none, or a directory (default: auto)",
    )
    add("--seed", type=int, default=0, help="of the seeds drawn for requests without one (default: 0)")
    add("--max-logprobs", type=int, default=20, metavar="N", help="a request's limit; -1 for none (default: 20)")
    add("--logprobs-mode", default="raw_logprobs", metavar="MODE", help=", ".join(LOGPROBS_MODES))
    add("--trust-remote-code", action="store_true", help="refused: no code of a checkpoint is ever run")


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``SchedulerOptions``."""
    add = parser.add_argument_group("scheduling (optimized engine)").add_argument
    default = SchedulerOptions()
    on_or_off = argparse.BooleanOptionalAction
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
        type=_bytes,
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
    add("--enforce-eager", action="store_true", help="no CUDA graphs, no CPU kernels in C++")
    add(
        "--enable-prefix-caching",
        action=on_or_off,
        default=default.enable_prefix_caching,
        help="reuse what was computed for requests that begin alike (default: on)",
    )
    add(
        "--enable-chunked-prefill",
        action=on_or_off,
        default=default.enable_chunked_prefill,
        help="compute long prompts over several steps (default: on)",
    )
    add(
        "--scheduling-policy",
        default=default.scheduling_policy,
        metavar="NAME",
        help=f"{', '.join(SCHEDULING_POLICIES)} (default: %(default)s)",
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
        nargs="+",
        help=f"repeatable; also from {' or '.join(KEY_VARIABLES)}",
    )
    add(
        "--served-model-name",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names clients may use; the first is reported",
    )
    add("--chat-template", metavar="FILE_OR_TEXT", help="instead of the model's")
    add("--trust-request-chat-template", action="store_true", help="let requests bring their own template")
    add("--response-role", default="assistant", metavar="ROLE", help="(default: assistant)")
    add("--ssl-keyfile", metavar="FILE")
    add("--ssl-certfile", metavar="FILE")
    add("--ssl-ca-certs", metavar="FILE")
    add("--root-path", default="", metavar="PATH", help="prefix under which a proxy shows the server")
    for name in ("origins", "methods", "headers"):
        add(f"--allowed-{name}", type=_json_strings, default=("*",), metavar="JSON", help='CORS (default: ["*"])')
    add("--allow-credentials", action="store_true", help="CORS")
    add("--enable-request-id-headers", action="store_true", help="answer with X-Request-Id")
    add("--enable-log-requests", action="store_true", help="log each request's parameters and prompt")
    add("--max-log-len", type=int, metavar="N", help="characters of a logged prompt")
    add("--disable-fastapi-docs", action="store_true", help="no /docs and /openapi.json")
    add("--uvicorn-log-level", default="info", choices=("critical", "error", "warning", "info", "debug", "trace"))
    add("--disable-uvicorn-access-log", dest="disable_access_log", action="store_true")
    add(
        "--shutdown-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds for open requests after a first SIGTERM (default: 60)",
    )
    add(
        "--disable-frontend-multiprocessing",
        dest="in_process_engine",
        action="store_true",
        help="run the engine in a thread of the server",
    )
    add(
        "--max-num-queued-reqs",
        dest="max_queued_requests",
        type=int,
        default=default.max_queued_requests,
        metavar="N",
        help="unfinished choices above which new requests are refused; 0 for no limit (default: %(default)s)",
    )
    add(
        "--max-num-queued-tokens",
        dest="max_queued_tokens",
        type=int,
        default=default.max_queued_tokens,
        metavar="N",
        help="the same for the tokens of unfinished prompts (default: %(default)s)",
    )
    add(
        "--http-timeout",
        type=float,
        default=default.http_timeout,
        metavar="S",
        help="seconds a client may take to send a head, to go on with a body or to read on (default: %(default)g)",
    )
    add("--config", metavar="FILE", help="YAML file of these options; the command line wins")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = server_config(arguments)
    from server.run import serve  # after the options, so that a wrong one is refused at once

    status: int = serve(config)
    return status


def server_config(arguments: argparse.Namespace) -> ServerConfig:
    """The configuration that parsed arguments mean.

    Raises:
        ConfigError: an option is malformed or contradicts another.
    """
    keys = tuple(key for group in arguments.api_key for key in group)
    options = vars(arguments) | {
        "model": model_options(arguments),
        "api_keys": keys or tuple(filter(None, map(os.environ.get, KEY_VARIABLES))),
        "served_model_names": tuple(arguments.served_model_name),
    }
    return ServerConfig(**_fields(ServerConfig, options))


def model_options(arguments: argparse.Namespace) -> ModelOptions:
    """The part of them that is about the model.

    Raises:
        ConfigError: an option is malformed or contradicts another.
    """
    if arguments.model and arguments.model_option:
        raise ConfigError("--model", "the model is given twice")
    check_backend(arguments.backend)
    model = arguments.model or arguments.model_option or ""
    return ModelOptions(**_fields(ModelOptions, vars(arguments) | {"model": model}))


def expand_config_file(argv: list[str]) -> list[str]:
    """Replace ``--config FILE`` by the options in it, placed before those of the command line.

    Raises:
        ConfigError: the file is missing or is not a mapping of option names to values.
    """
    for i, argument in enumerate(argv):
        name, has_value, path = argument.partition("=")
        if name == "--config":
            if not has_value and i + 1 == len(argv):
                return argv  # argparse says what is missing
            path = path if has_value else argv[i + 1]
            rest = argv[1:i] + argv[i + (1 if has_value else 2) :]
            return [argv[0], *_options_of_file(path), *rest]
    return argv


def _options_of_file(path: str) -> list[str]:
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError("--config", f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("--config", f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(entries, dict):
        raise ConfigError("--config", f"{path} must map option names to values")
    arguments: list[str] = []
    for name, value in entries.items():
        arguments += _as_arguments(f"--{str(name).replace('_', '-')}", value)
    return arguments


def _as_arguments(option: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    if option.startswith("--allowed-") or isinstance(value, dict):
        return [f"{option}={json.dumps(value)}"]
    if isinstance(value, list):
        return [option, *map(str, value)]
    return [f"{option}={value}"]


def _fields(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in kind.__struct_fields__ if name in options}  # type: ignore[attr-defined]


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kKmMgG]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 2000000000 or 2G")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2].lower()]


def _json_object(text: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _json_strings(text: str) -> tuple[str, ...]:
    value = _json(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list of strings")
    return tuple(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON") from error
