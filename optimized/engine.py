"""The engine: each step schedules, lays out a batch, runs the model, samples and accounts for it.

On a GPU the next step is begun before the tokens of this one are waited for, so that the GPU does not wait for the
host. It is scheduled as if each sequence went on, and takes its tokens from where they are drawn. A sequence that has
ended after all was computed once in vain: nobody takes what came of it, and whoever gets its blocks writes later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Sized
from typing import NamedTuple

import torch

from optimized.cache.kv_cache import KVCache
from optimized.cache.paged_cache import PagedCache
from optimized.cache.row_cache import RowCache
from optimized.kernels import native
from optimized.kernels.compat import HAS_TRITON
from optimized.layers.model import Model
from optimized.layers.rotary import rotary_tables
from optimized.layers.weights import fuse
from optimized.runner.batch import Batch, Fill, build_batch
from optimized.runner.cuda_graphs import Capture, CudaCapture, DecodeGraphs, batch_sizes
from optimized.runner.memory import MAX_LOGITS, budget
from optimized.runner.packing import to_device
from optimized.runner.sampler import NOT_FINITE, Drawing, Sampled, report, sample, warm_up
from optimized.scheduling.block_pool import BlockPool
from optimized.scheduling.scheduler import Schedule, Scheduled, Scheduler, SchedulerConfig
from optimized.scheduling.sequence import Sequence
from tandem.config import EngineConfig
from tandem.engine import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    LogprobColumns,
    TokenLogprobs,
)
from tandem.errors import ConfigError
from tandem.models.checkpoint import iterate_weights
from tandem.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 32  # a prefill whose blocks of queries are the long ones


def choose_device() -> torch.device:
    """The GPU where there is one.

    Raises:
        ConfigError: there is one, but no Triton to write kernels for it.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not HAS_TRITON:
        raise ConfigError("--backend", "the optimized engine needs Triton on a GPU; install it or take reference")
    return torch.device("cuda", torch.cuda.current_device())


def choose_cache(device: torch.device) -> type[RowCache] | type[PagedCache]:
    """Attention on a CPU is fastest over contiguous rows; on a GPU the kernels follow block tables."""
    return PagedCache if device.type == "cuda" else RowCache


class UnderWay(NamedTuple):
    """A step that nobody has waited for.

    Attributes:
        sequences: those that it brings to their last known token.
        drawn: those of them that get another.
        drawing: row i is for the i-th of these. Even if there are none it is waited for: else the host would begin
            the chunks of a long prompt all at once, and whoever comes next would have to wait for them.
    """

    sequences: list[Sequence]
    drawn: list[Sequence]
    drawing: Drawing

    @property
    def is_foreseeable(self) -> bool:
        """Whether the next step can begin before this one's tokens are known."""
        return all(sequence.is_foreseeable for sequence in self.drawn)


class OptimizedEngine:
    """An :class:`tandem.engine.Engine` that advances many requests at once.

    Args:
        config: resolved; see ``EngineConfig``.
        on_progress: told the fraction of the weights that is loaded.

    Raises:
        CheckpointError: the weights cannot be loaded, or there is no room for them and a cache.
        ConfigError: the limits contradict each other, or this machine cannot honour one.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[float], None] | None = None) -> None:
        self.config = config
        device = choose_device()
        limits = config.scheduler
        with torch.inference_mode():
            weights = fuse(config.model, iterate_weights(config, device, on_progress))
            num_parameters = sum(w.numel() for w in weights.values())
            self.model = Model(config.model, weights)
        self._cache_type = choose_cache(device)
        room = budget(config, device, stores_twice=self._cache_type is RowCache and limits.enable_prefix_caching)
        logger.info("%s", room)
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                block_size=limits.block_size,
                chunked_prefill=limits.enable_chunked_prefill,
                prefix_caching=limits.enable_prefix_caching,
                by_priority=limits.scheduling_policy == "priority",
            ),
            BlockPool(room.num_blocks, limits.enable_prefix_caching),
        )
        self._tables = rotary_tables(config.model, config.max_model_len, device)
        self.cache = self._new_cache(limits.max_num_seqs, config.max_model_len, room.num_blocks)
        self._graphs: DecodeGraphs | None = None
        self._info = EngineInfo(
            backend="optimized",
            device=str(device),
            dtype=config.dtype,
            vocab_size=config.model.vocab_size,
            max_model_len=config.max_model_len,
            kv_cache_tokens=room.num_blocks * limits.block_size,
            num_parameters=num_parameters,
        )
        self._prompt_reports: dict[str, list[TokenLogprobs]] = {}
        self._broken: set[str] = set()  # requests whose prompt has logits that are no numbers
        self._num_step_tokens = 0
        self._overlaps = device.type == "cuda"  # elsewhere the host is what computes
        self._under_way: UnderWay | None = None
        self._build: native.Build | None = None
        if device.type == "cuda":
            self._warm_up()
        elif limits.enforce_eager:
            native.forget()
        else:
            self._build = native.Build()
            self._build.start()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or self._under_way is not None

    @property
    def stats(self) -> EngineStats:
        s, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            num_running=len(s.running),
            num_waiting=s.num_waiting,
            kv_cache_usage=1 - pool.num_free / pool.num_blocks,
            num_step_tokens=self._num_step_tokens,
            num_preemptions=s.num_preemptions,
            num_prefix_queries=s.num_prefix_queries,
            num_prefix_hits=s.num_prefix_hits,
        )

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        self._end(request_id)

    @torch.inference_mode()
    def step(self) -> Sized[EngineOutput]:
        before, self._under_way = self._under_way, None
        outputs: list[EngineOutput] = []
        if before is not None and not before.is_foreseeable:
            outputs, before = self._finish(before), None
        begun = self._begin(before)
        if before is not None:
            outputs = self._finish(before)
        if begun is not None and not self._overlaps:
            return self._finish(begun)
        self._under_way = begun
        return outputs

    @torch.inference_mode()
    def trace(self, token_ids: list[int]) -> list[torch.Tensor]:
        """As one prefill of a cache of its own."""
        stream: list[torch.Tensor] = []
        x = self._run_alone(token_ids, lambda x: stream.append(x.float().cpu()))
        return [*stream, self.model.logits(x).cpu()]

    @torch.inference_mode()
    def capture_decodes(self, capture: Capture) -> None:
        """From now on steps of decodes alone run as ``capture`` has turned them into; for a paged cache."""
        assert isinstance(self.cache, PagedCache)
        limits = self.scheduler.config
        sizes = batch_sizes(min(limits.max_num_seqs, limits.max_num_batched_tokens))
        self._graphs = DecodeGraphs(self.model, self.cache, sizes, capture)

    def close(self) -> None:
        if self._build:
            self._build.close()
        if hasattr(self, "model"):
            del self.model, self.cache, self._graphs, self._under_way
            torch.cuda.empty_cache()  # does nothing where there is no GPU

    def _new_cache(self, num_rows: int, capacity: int, num_blocks: int) -> RowCache | PagedCache:
        size, dtype = self.scheduler.config.block_size, self.model.dtype
        return self._cache_type(self.config.model, num_rows, capacity, num_blocks, size, dtype, self._tables)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile kernels and capture graphs, so that no request waits for it."""
        for length in (1, min(WARM_UP_TOKENS, self.config.max_model_len)):
            logits = self.model.logits(self._run_alone([0] * length))
        warm_up(logits)
        if not self.config.scheduler.enforce_eager:
            self.capture_decodes(CudaCapture())

    # ------------------------------------------------------------------ the parts of a step

    def _begin(self, before: UnderWay | None) -> UnderWay | None:
        """Set a step going, after one that may be under way; None if there is nothing to do."""
        schedule = self.scheduler.schedule()
        self._prepare_rows(schedule)
        self._num_step_tokens = schedule.num_tokens
        if not schedule.work:
            if before is None and self.scheduler.has_unfinished:  # it would stay so for ever
                raise RuntimeError("requests are unfinished, but none has anything to compute")
            return None
        batch = build_batch(schedule)
        x = self._forward(batch, self._fill(batch, before))
        self._account(schedule)
        self._report_prompts(batch, x)
        return self._draw(batch, x)

    def _finish(self, step: UnderWay) -> list[EngineOutput]:
        """Wait for a step's tokens and say what came of them. Who has left since then is passed over."""
        found = dict(zip(step.drawn, step.drawing.take(), strict=True))
        return [self._advance(s, found.get(s)) for s in step.sequences if self.scheduler.holds(s)]

    def _prepare_rows(self, schedule: Schedule) -> None:
        """Rows that were left are given back; rows that begin with a cached prefix get it."""
        for row, num_tokens in self.scheduler.vacated:
            self.cache.release(row, num_tokens)
        self.scheduler.vacated.clear()
        for sequence in schedule.started:
            num_blocks = sequence.num_computed_tokens // self.scheduler.config.block_size
            self.cache.load(sequence.row, sequence.block_ids[:num_blocks])

    def _fill(self, batch: Batch, before: UnderWay | None) -> Fill | None:
        """What puts tokens that the step ``before`` draws into this one; None if it needs none."""
        if not batch.drawing:
            return None
        assert before is not None
        rows = {sequence: row for row, sequence in enumerate(before.drawn)}
        indices = [chunk.start for chunk in batch.drawing], [rows[chunk.sequence] for chunk in batch.drawing]
        places, sources = to_device([torch.tensor(x) for x in indices], self.model.device)
        return Fill(places, before.drawing.tokens.index_select(0, sources))

    def _forward(self, batch: Batch, fill: Fill | None) -> torch.Tensor:
        """Hidden states [T, D]."""
        x = self._graphs.forward(batch, fill) if self._graphs is not None else None
        return self._run(batch, self.cache, fill) if x is None else x

    def _run_alone(self, token_ids: list[int], seen: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        """Hidden states [T, D] of one prefill of a cache of its own."""
        length, size = len(token_ids), self.scheduler.config.block_size
        request = EngineRequest(
            request_id="", prompt_token_ids=token_ids, sampling=SamplingParams(), max_tokens=0, seed=0
        )
        sequence = Sequence(request, (0, 0))
        sequence.row = 0
        sequence.block_ids = list(range(-(-length // size)))
        batch = build_batch(Schedule([Scheduled(sequence, length)]))
        return self._run(batch, self._new_cache(1, length, len(sequence.block_ids)), seen=seen)

    def _run(
        self,
        batch: Batch,
        cache: KVCache,
        fill: Fill | None = None,
        seen: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Hidden states [T, D] of a batch on the host; ``seen`` as in ``Model.forward``."""
        [token_ids] = to_device([batch.token_ids], self.model.device)
        if fill is not None:
            fill.put_into(token_ids)
        return self.model.forward(token_ids, cache.attention(batch), seen)

    def _report_prompts(self, batch: Batch, x: torch.Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow this step's, for requests that ask for them."""
        for chunk in (*batch.decodes, *batch.prefills):
            sequence = chunk.sequence
            if sequence.is_plain:
                continue
            count = sequence.request.sampling.prompt_logprobs
            if count is None or chunk.position >= sequence.num_prompt_tokens - 1 or sequence.num_output_tokens:
                continue
            reports = self._prompt_reports.setdefault(sequence.request.request_id, [])
            following = sequence.token_ids[chunk.position + 1 : min(chunk.context + 1, sequence.num_prompt_tokens)]
            del reports[chunk.position :]  # computed before a preemption
            rows = max(1, MAX_LOGITS // self.config.model.vocab_size)
            for start in range(0, len(following), rows):
                part = following[start : start + rows]
                logits = self.model.logits(x[chunk.start + start : chunk.start + start + len(part)])
                if not torch.isfinite(logits.amax(-1)).all():
                    self._broken.add(sequence.request.request_id)
                    break
                reports += report(logits, part, [count] * len(part))

    def _draw(self, batch: Batch, x: torch.Tensor) -> UnderWay:
        """Begin to draw from the logits of hidden states [T, D]."""
        ended = [chunk.sequence for chunk in batch.sampled]
        wanted = [chunk for chunk in batch.sampled if chunk.sequence.request.max_tokens > 0]
        if not wanted:
            return UnderWay(ended, [], Drawing(torch.empty(0, dtype=torch.int64, device=x.device), [], None, {}))
        if len(wanted) < batch.num_tokens:
            [last] = to_device([torch.tensor([chunk.end - 1 for chunk in wanted])], self.model.device)
            x = x.index_select(0, last)
        drawn = [chunk.sequence for chunk in wanted]
        drawing = sample(self.model.logits(x), drawn, self.config.logprobs_mode)
        for sequence in drawn:
            sequence.num_drawing += 1
        return UnderWay(ended, drawn, drawing)

    def _account(self, schedule: Schedule) -> None:
        """What the step computes stands in the cache as far as later steps are concerned."""
        for work in schedule.work:
            for place, block in self.scheduler.computed(work):
                self.cache.save(work.sequence.row, place, block)

    def _advance(self, sequence: Sequence, sampled: Sampled | None) -> EngineOutput:
        """Add the token that was drawn, if one was to be, and say what came of it."""
        request = sequence.request
        tokens: list[int] = []
        finish_reason: FinishReason | None = "length"  # of a request for its prompt alone
        stop_token_id, error = None, None
        if request.request_id in self._broken:
            finish_reason, error = "error", NOT_FINITE
        elif sampled is not None and sampled.error is not None:
            finish_reason, error = "error", sampled.error
        elif sampled is not None:
            tokens = [sampled.token_id]
            sequence.take(sampled.token_id)
            finish_reason, stop_token_id = _reason_to_end(sequence)
        output = EngineOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            logprobs=LogprobColumns.of([sampled.logprobs]) if tokens and sampled and sampled.logprobs else None,
            prompt_logprobs=self._take_prompt_reports(sequence),
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
            error=error,
            num_cached_tokens=sequence.num_cached_tokens,
            scheduled_time=sequence.scheduled_time,
        )
        if finish_reason is not None:
            self._end(request.request_id)
        return output

    def _take_prompt_reports(self, sequence: Sequence) -> LogprobColumns | None:
        """With the first output, what was asked for about the prompt; a prompt of one token has no report."""
        num_known = len(sequence.token_ids) - sequence.num_prompt_tokens
        if sequence.request.sampling.prompt_logprobs is None or num_known > 1:
            return None
        return LogprobColumns.of(self._prompt_reports.pop(sequence.request.request_id, []))

    def _end(self, request_id: str) -> None:
        self._prompt_reports.pop(request_id, None)
        self._broken.discard(request_id)
        self.scheduler.finish(request_id)


def _reason_to_end(sequence: Sequence) -> tuple[FinishReason | None, int | None]:
    """Whether the latest known token was the last, and the stop token that it may be."""
    request, token_id = sequence.request, sequence.token_ids[-1]
    if token_id in request.eos_token_ids:
        return "stop", None
    if token_id in request.sampling.stop_token_ids:
        return "stop", token_id
    if len(sequence.token_ids) >= sequence.limit:
        return "length", None
    return None, None
