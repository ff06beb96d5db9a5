"""The server's configuration: frozen, complete, one object."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from tandem.config import ModelOptions
from tandem.errors import ConfigError
from tandem.process.profiler import ProfilerConfig
from tandem.process.transport import check_tcp_address
from tandem.text.chat_template import CONTENT_FORMATS
from tandem.text.parsers import registry

MAX_CHOICES = 4096  # of all prompts of one HTTP request
_OPTIONS = {"max_queued_requests": "--max-num-queued-reqs", "max_queued_tokens": "--max-num-queued-tokens"}


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``run_server`` needs. Each field is the option of ``tandem serve`` with the same name.

    Attributes:
        model: which model, and how its engine is built.
        host, port: where to listen; port 0 lets the system pick. ``uds`` replaces both by a Unix socket.
        api_keys: any of them opens the server; empty means that no key is asked for.
        salt_prefix_cache_by_key: what is computed for one key's requests is not found by another's.
        served_model_names: names clients may use; the first is the one reported. Empty: the model as given.
        chat_template: a file or the template's text; None takes the model's.
        chat_template_content_format: whether it is given content as a ``string`` or as ``openai``'s list of parts;
            ``auto`` tries.
        allow_special_tokens_in_content: those in messages are tokens, not the text they are.
        tool_call_parser, reasoning_parser: how the model writes tool calls and thoughts: a name, ``none``, or
            ``auto`` or None for what its chat template gives away.
        enable_auto_tool_choice: insists on a ``tool_call_parser``; tools may be called wherever the format is known.
        response_store: file that keeps responses and conversations; None keeps them in memory.
        files_dir: directory that keeps files and batches; None keeps them while the server lives.
        max_files_bytes: of all files together.
        max_batch_lines: lines of batches that are answered at once.
        response_role: role of generated messages.
        enable_dev_mode: there are routes that pause the server, let the engine sleep, and tell its configuration.
        enable_tokenizer_info_endpoint: answer ``/tokenizer_info``.
        profiler_config: there are ``/start_profile`` and ``/stop_profile``, and how profiles are taken.
        enable_ollama_api: there are routes below ``/api``, as Ollama has them.
        shutdown_timeout: seconds that open requests get to finish after a first SIGTERM or SIGINT.
        in_process_engine: the engine's loop runs in a thread of this process.
        max_engine_restarts: how often within ten minutes an engine that has died is started again.
        engine_stall_timeout: seconds of silence, or within one step, after which the engine's open requests fail and
            it is replaced; 0 for never.
        engine_address: ``tcp://HOST:PORT`` at which the engine listens, encrypted, instead of a Unix socket.
        max_queued_requests: unfinished choices above which new requests get 429; 0 for no limit. By default two of
            the largest requests there may be.
        max_queued_tokens: tokens of unfinished prompts above which new requests get 429; 0 for no limit. Each takes
            about a hundred bytes.
        max_body_bytes: larger request bodies get 413.
        middleware: import paths of ASGI middleware, classes or ``async (request, call_next)`` functions; each goes
            around those before it, and all go around our own.
        enable_log_requests, enable_log_outputs: log what comes, and what goes; outputs only with requests.
        enable_metrics: measure, and answer ``/metrics``.
        metrics_port: answer ``/metrics`` there and nowhere else, over plain HTTP and without a key; 0 lets the system
            pick.
        disable_ui: there is no page at ``/``.
        otlp_traces_endpoint: a collector's, to which a trace of each generation goes; None for none.
        quiet_paths: their requests are left out of the access log.
        enable_server_load_tracking: answer ``/load``.
        http_timeout: seconds that a client may take to send a request's head, to go on with its body or to read on.
    """

    model: ModelOptions = ModelOptions()
    host: str = "0.0.0.0"
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    salt_prefix_cache_by_key: bool = False
    served_model_names: tuple[str, ...] = ()
    chat_template: str | None = None
    chat_template_content_format: str = "auto"
    trust_request_chat_template: bool = False
    allow_special_tokens_in_content: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str = "auto"
    enable_auto_tool_choice: bool = False
    response_store: str | None = None
    files_dir: str | None = None
    max_files_bytes: int = 4 * 2**30
    max_batch_lines: int = 32
    response_role: str = "assistant"
    enable_ollama_api: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    root_path: str = ""
    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    enable_request_id_headers: bool = True
    enable_dev_mode: bool = False
    enable_tokenizer_info_endpoint: bool = False
    profiler_config: ProfilerConfig | None = None
    enable_log_requests: bool = False
    enable_log_outputs: bool = False
    max_log_len: int | None = None
    middleware: tuple[str, ...] = ()
    enable_metrics: bool = True
    metrics_port: int | None = None
    otlp_traces_endpoint: str | None = None
    quiet_paths: tuple[str, ...] = ()
    enable_server_load_tracking: bool = True
    disable_fastapi_docs: bool = False
    disable_ui: bool = False
    uvicorn_log_level: str = "info"
    disable_access_log: bool = False
    shutdown_timeout: float = 60.0
    in_process_engine: bool = False
    max_engine_restarts: int = 3
    engine_stall_timeout: float = 60.0
    engine_address: str | None = None
    max_queued_requests: int = 2 * MAX_CHOICES
    max_queued_tokens: int = 2**23
    max_body_bytes: int = 32 * 2**20
    http_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", f"must be between 0 and 65535, got {self.port}")
        self._check_observability()
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ConfigError("--ssl-keyfile", "needs --ssl-certfile beside it, and the other way round")
        for option in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            path = getattr(self, option)
            if path and not Path(path).is_file():
                raise ConfigError(f"--{option.replace('_', '-')}", f"there is no file {path}")
        if not 0 <= self.shutdown_timeout < math.inf:
            raise ConfigError("--shutdown-timeout", f"must be at least 0 seconds, got {self.shutdown_timeout}")
        if self.max_engine_restarts < 0:
            raise ConfigError("--max-engine-restarts", f"must be at least 0, got {self.max_engine_restarts}")
        if not 0 <= self.engine_stall_timeout < math.inf:
            option = "--engine-stall-timeout"
            raise ConfigError(option, f"must be at least 0 seconds (0 for never), got {self.engine_stall_timeout}")
        if self.chat_template_content_format not in CONTENT_FORMATS:
            message = f"{self.chat_template_content_format!r} is not one of {', '.join(CONTENT_FORMATS)}"
            raise ConfigError("--chat-template-content-format", message)
        if self.engine_address is not None:
            check_tcp_address(self.engine_address)
        if self.profiler_config is not None and self.model.distributed_executor_backend != "uni":
            message = "the engine's own process is profiled: it needs --distributed-executor-backend uni"
            raise ConfigError("--profiler-config", message)
        for option in ("max_queued_requests", "max_queued_tokens"):
            if (value := getattr(self, option)) < 0:
                raise ConfigError(_OPTIONS[option], f"must be at least 0, got {value}")
        for option in ("max_files_bytes", "max_batch_lines"):
            if (value := getattr(self, option)) < 1:
                raise ConfigError(f"--{option.replace('_', '-')}", f"must be at least 1, got {value}")
        if self.http_timeout <= 0:
            raise ConfigError("--http-timeout", f"must be more than 0 seconds, got {self.http_timeout}")
        for key in self.api_keys:
            check_key(key)
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            message = "needs --tool-call-parser; auto takes what the chat template gives away"
            raise ConfigError("--enable-auto-tool-choice", message)
        if self.tool_call_parser not in (None, "auto", "none"):
            registry.tool_format(self.tool_call_parser)
        if self.reasoning_parser not in ("auto", "none"):
            registry.reasoning_format(self.reasoning_parser)

    def _check_observability(self) -> None:
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ConfigError("--enable-log-outputs", "needs --enable-log-requests")
        if self.metrics_port is None:
            return
        if not 0 <= self.metrics_port <= 65535:
            raise ConfigError("--metrics-port", f"must be between 0 and 65535, got {self.metrics_port}")
        if not self.enable_metrics:
            raise ConfigError("--metrics-port", "contradicts --no-enable-metrics")
        if self.metrics_port == self.port != 0 and self.uds is None:
            raise ConfigError("--metrics-port", "must differ from --port")


def check_key(key: str) -> str:
    """A key as it is compared: without the white space around it, such as the last newline of a secret file.

    Raises:
        ConfigError: nothing is left of it, or it holds what no HTTP header can carry.
    """
    stripped = key.strip()
    if not stripped:
        raise ConfigError("--api-key", "must not be empty")
    if not stripped.isprintable():
        raise ConfigError("--api-key", "must not hold control characters")
    return stripped
