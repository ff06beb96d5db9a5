"""What the routes share: the configuration, the engine's client, the loaded model, and how healthy all of it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from server.config import ServerConfig
from server.dialects.vocabulary import Vocabulary
from server.files.store import FileStore
from server.files.store import Limits as FileLimits
from server.intake.capacity import Capacity
from server.intake.pool import WorkPool
from server.operations.engine_metrics import EngineView
from server.operations.metrics import Metrics
from server.operations.tracing import Tracer
from server.responses.store import Store
from tandem.config import ResolvedModel
from tandem.engine import EngineInfo, EngineStats
from tandem.errors import EngineDeadError, EngineLoadingError, EngineStalledError
from tandem.generation.generation import Generation, TextGenerator
from tandem.models.hub import served_name
from tandem.process.client import EngineClient
from tandem.process.supervisor import Supervisor
from tandem.text.chat_template import ChatTemplate
from tandem.text.conversation import ConversationEncoder
from tandem.text.parsers.parser import ReasoningFormat, ToolFormat
from tandem.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.files.batches import Batches
    from server.responses.run import Run


@dataclass(frozen=True, slots=True)
class Formats:
    """How a model writes thoughts and tool calls; None where that is not known, or not to be looked for."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All that belongs to a model that can answer.

    Attributes:
        template: None if the model has no chat template.
        fingerprint: ``system_fingerprint`` of answers.
    """

    resolved: ResolvedModel
    info: EngineInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None
    formats: Formats
    encoder: ConversationEncoder
    generator: TextGenerator
    vocabulary: Vocabulary
    fingerprint: str

    @property
    def max_logprobs(self) -> int:
        """How many log-probabilities a request may ask for."""
        limit = self.resolved.max_logprobs
        return self.info.vocab_size if limit == -1 else limit

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer at most."""
        return min(self.info.max_model_len, self.info.kv_cache_tokens)


@dataclass(frozen=True, slots=True)
class Health:
    """``state`` is ``healthy`` only while requests are answered; ``detail`` is one line for the user."""

    state: Literal["healthy", "loading", "unhealthy", "restarting", "dead", "draining"]
    detail: str


class ServerState:
    """Belongs to one application and one event loop.

    Attributes:
        created: Unix time of the start; when the models came to be, as far as clients are concerned.
        client, supervisor: None until the engine's process has been started.
        model: None until the model can answer.
        draining: no new requests are taken.
        num_requests: HTTP requests being answered now, those for health and metrics left out.
        capacity: how much work may be taken on.
        pool: where long work on texts is done.
        metrics: of this application alone.
        tracer: of generations, if they are traced.
        files: that clients have brought.
        store: responses and conversations that are kept.
        batches: None until there is an application to answer them.
        runs: responses that are being made, by owner and id.

    Raises:
        ConfigError: the store's file or the directory of files cannot be used, or there is no way to trace.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.names: tuple[str, ...] = config.served_model_names or (served_name(config.model.model),)
        self.created = int(time.time())
        self.client: EngineClient | None = None
        self.supervisor: Supervisor | None = None
        self.model: LoadedModel | None = None
        self.draining = False
        self.num_requests = 0
        self.metrics = Metrics(self.names[0], self._engine_view)
        self.capacity = Capacity(config)
        self.tracer = Tracer(config.otlp_traces_endpoint) if config.otlp_traces_endpoint else None
        self.pool = WorkPool()
        self.store = Store(config.response_store)
        self.files = FileStore(config.files_dir, FileLimits(bytes=config.max_files_bytes))
        self.batches: Batches | None = None
        self.runs: dict[tuple[str, str], Run] = {}
        self._generations: set[Generation] = set()
        self._resumed = asyncio.Event()
        self._resumed.set()

    @property
    def health(self) -> Health:
        """How the server is now."""
        if self.draining:
            return Health("draining", "the server is shutting down")
        if self.client is None:
            return Health("loading", "the model's configuration is being read")
        status = self.client.status
        if status.state != "ready":
            return Health(status.state, status.detail)
        if self.model is None:
            return Health("loading", "the tokenizer is being loaded")
        return Health("healthy", status.detail)

    def require_model(self) -> LoadedModel:
        """The model, if it can answer now.

        Raises:
            EngineLoadingError, EngineStalledError, EngineDeadError: it cannot.
        """
        health = self.health
        match health.state:
            case "loading" | "restarting":
                raise EngineLoadingError(health.detail)
            case "unhealthy":
                raise EngineStalledError(health.detail)
            case "dead":
                raise EngineDeadError(health.detail)
        if self.model is None:  # draining before it was loaded
            raise EngineDeadError(health.detail)
        return self.model

    @property
    def has_open_work(self) -> bool:
        """What a drain waits for: HTTP requests, generations and responses, also those whose connection has gone."""
        return bool(self.num_requests or self._generations or self.runs)

    def track(self, generation: Generation) -> None:
        """Count a generation as open until it has ended, whoever reads it."""
        self._generations.add(generation)
        generation.add_done_callback(lambda _: self._generations.discard(generation))

    @property
    def is_paused(self) -> bool:
        """Whether no further generation begins."""
        return not self._resumed.is_set()

    async def pause(self, aborts: bool) -> None:
        """Let no further generation begin; abort those in flight, or wait for their end."""
        self._resumed.clear()
        open_ones = list(self._generations)
        if aborts:
            for generation in open_ones:
                generation.abort()
        await asyncio.gather(*(generation.ended() for generation in open_ones))

    def resume(self) -> None:
        """Let generations begin again."""
        self._resumed.set()

    async def until_resumed(self) -> None:
        """Return at once unless paused."""
        await self._resumed.wait()

    def _engine_view(self) -> EngineView:
        stats = self.client.stats if self.client is not None else EngineStats()
        num_restarts = self.supervisor.num_restarts if self.supervisor is not None else 0
        return EngineView(stats, self.model.info if self.model else None, self.config.model.scheduler, num_restarts)

    def close(self) -> None:
        """Let the threads end; idempotent."""
        self.pool.close()
        self.store.close()
        if self.tracer is not None:
            self.tracer.close()
        self.files.close()
