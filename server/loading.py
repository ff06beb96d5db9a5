"""From options to a model that can answer: the engine's process loads weights while the tokenizer is read here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from server.config import ServerConfig
from server.dialects.vocabulary import Vocabulary
from server.state import Formats, LoadedModel, ServerState
from tandem import __version__
from tandem.config import ResolvedModel, resolve
from tandem.generation.generation import TextGenerator
from tandem.process.client import EngineClient
from tandem.process.supervisor import Supervisor
from tandem.text.chat_template import ChatTemplate, load_chat_template
from tandem.text.conversation import ConversationEncoder
from tandem.text.parsers import registry
from tandem.text.tokenizer import Tokenizer

logger = logging.getLogger("tandem")
T = TypeVar("T")


async def start_engine(state: ServerState) -> tuple[ResolvedModel, Supervisor]:
    """Read the model's configuration, start its engine and connect to it; returns long before the weights are loaded.

    The supervisor is the caller's, who closes it.

    Raises:
        ConfigError, CheckpointError: the model cannot be served.
    """
    config = state.config
    logger.info("Loading model %s", state.names[0])
    resolved = await _in_daemon(lambda: resolve(config.model))
    supervisor = Supervisor(
        resolved.engine,
        in_process=config.in_process_engine,
        max_restarts=config.max_engine_restarts,
        address=config.engine_address,
        profiler=config.profiler_config,
    )
    supervisor.start()
    on_step = state.metrics.on_step if config.enable_metrics else None
    client = EngineClient(supervisor, stall_timeout=config.engine_stall_timeout, on_step=on_step)
    await client.start()
    state.client, state.supervisor = client, supervisor
    return resolved, supervisor


async def load_model(state: ServerState, resolved: ResolvedModel) -> None:
    """Read the tokenizer and wait for the engine; then ``state.model`` is set.

    Raises:
        ConfigError, CheckpointError: the tokenizer or the template is unusable.
        EngineDeadError: the engine could not be built.
    """
    assert state.client is not None
    began = time.monotonic()
    ready = asyncio.ensure_future(state.client.wait_ready())
    try:
        tokenizer, template = await _in_daemon(lambda: _read_text(resolved, state.config))
        info = await ready
    finally:
        ready.cancel()
    state.model = LoadedModel(
        resolved=resolved,
        info=info,
        tokenizer=tokenizer,
        template=template,
        formats=_formats(state.config, template),
        encoder=ConversationEncoder(
            tokenizer, template, allow_special_tokens=state.config.allow_special_tokens_in_content
        ),
        generator=TextGenerator(state.client, tokenizer, resolved),
        vocabulary=Vocabulary(tokenizer),
        fingerprint=f"tandem-{__version__}-{info.backend}",
    )
    logger.info(
        "Model loaded in %.1f s: %s engine on %s, %s, context of %d tokens",
        time.monotonic() - began, info.backend, info.device, info.dtype, state.model.context,
    )  # fmt: skip


async def _in_daemon(work: Callable[[], T]) -> T:
    """Do slow work, such as downloads, in a thread that does not keep an ending process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await done


def _formats(config: ServerConfig, template: ChatTemplate | None) -> Formats:
    """Those that the options name; with ``auto`` those that the chat template gives away."""
    tools, reasoning = registry.detect(template.source) if template is not None else (None, None)
    if config.tool_call_parser not in (None, "auto"):
        tools = None if config.tool_call_parser == "none" else registry.tool_format(config.tool_call_parser)
    if config.reasoning_parser != "auto":
        reasoning = None if config.reasoning_parser == "none" else registry.reasoning_format(config.reasoning_parser)
    names = [form.name if form is not None else "none" for form in (tools, reasoning)]
    logger.info("Tool calls are read as %s, reasoning as %s", *names)
    return Formats(reasoning, tools)


def _read_text(resolved: ResolvedModel, config: ServerConfig) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = Tokenizer.from_directory(resolved.tokenizer_path)
    own, special = tokenizer.chat_template, tokenizer.special_tokens
    return tokenizer, load_chat_template(config.chat_template, own, special, config.chat_template_content_format)
