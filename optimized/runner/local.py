"""The runner in this thread: plans to batches, through the model and the sampler, to results."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from optimized.cache.paged_cache import CacheStep, PagedCache
from optimized.kernels.compat import HAS_TRITON
from optimized.kernels.moe_matmul import tokens_by_tile
from optimized.kernels.native import Build, Library
from optimized.kernels.paged_attention import SPLIT_SIZE
from optimized.layers.model import Model
from optimized.layers.rotary import rotary_tables
from optimized.layers.weights import fuse
from optimized.runner.batch import Batch, build_batch
from optimized.runner.cuda_graphs import Capture, CudaCapture, DecodeGraphs, batch_sizes
from optimized.runner.edits import NOT_FINITE, Edits
from optimized.runner.grammars import RowGrammar, RowGrammars
from optimized.runner.logprobs import Reports, report
from optimized.runner.memory import MAX_LOGITS, budget
from optimized.runner.packing import ToHost, to_device
from optimized.runner.rows import Rows
from optimized.runner.runner import RunnerInfo
from optimized.runner.sampler import Asked, PendingTokens, Sampled, Sampler
from optimized.scheduling.plan import Plan, RowResult, RowStart, RowWork
from tandem.config import EngineConfig
from tandem.engine import LogprobColumns
from tandem.errors import ConfigError
from tandem.grammar.matcher import Grammars
from tandem.models.checkpoint import iterate_weights
from tandem.models.hub import ModelFiles
from tandem.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 32  # a prefill whose blocks of queries are the long ones
Seen = Callable[[torch.Tensor], None]
OnProgress = Callable[[float], None]


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


@dataclass(frozen=True, slots=True)
class PromptReport:
    """Log-probabilities of a part of a prompt on their way to the host."""

    work: int
    num_top: int
    copy: ToHost

    def take(self) -> LogprobColumns | None:
        """None if the logits were not finite."""
        greatest, *columns = self.copy.arrays()
        if not bool(torch.isfinite(greatest).all()):
            return None
        return Reports(*columns).columns(0, len(greatest), self.num_top)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that nobody has waited for."""

    work: list[RowWork]
    sampled: list[int]  # the work that each run of sampled tokens belongs to
    tokens: PendingTokens | None
    prompts: list[PromptReport]
    done: ToHost | None  # of a step that samples nothing: even that is waited for, or the host would run ahead
    grammars: dict[int, RowGrammar]  # by work: whose next masks depend on what was sampled
    foresees: bool  # whether tokens that must follow are worth knowing: a full batch has no room for drafts
    results: list[RowResult]  # once they have come

    def take(self) -> list[RowResult]:
        """Wait for it, if nobody has."""
        if not self.results:
            self.results.extend(self._wait())
            for i, grammar in self.grammars.items():
                grammar.accept(self.results[i].token_ids)
                if self.foresees and (forced := grammar.matcher.forced()):
                    self.results[i] = msgspec.structs.replace(self.results[i], forced=forced)
        return self.results

    def _wait(self) -> list[RowResult]:
        if self.done is not None:
            self.done.arrays()
        results = [RowResult() for _ in self.work]
        tokens = self.tokens.take() if self.tokens is not None else []
        start = 0
        for i in self.sampled:
            count = self.work[i].num_samples
            results[i] = _accepted(self.work[i], tokens[start : start + count])
            start += count
        for prompt in self.prompts:
            columns, before = prompt.take(), results[prompt.work]
            error = NOT_FINITE if columns is None else before.error
            parts = [part for part in (before.prompt_logprobs, columns) if part is not None]
            joined = LogprobColumns.join(parts) if parts else None
            results[prompt.work] = msgspec.structs.replace(before, prompt_logprobs=joined, error=error)
        return results


class LocalRunner:
    """A :class:`optimized.runner.runner.Runner` in this thread.

    Args:
        config: resolved; see ``EngineConfig``.
        on_progress: called with the fraction of the weights that is loaded.
        num_steps_ahead: see ``RunnerInfo``; None is what suits the device.
        capture: lay decodes out as captured graphs need them and turn each size's computation into what this makes
            of it; None captures CUDA graphs on a GPU unless ``enforce_eager``, and nothing on a CPU.
        library: the CPU kernels; None builds them on a CPU unless ``enforce_eager``.

    Attributes:
        library: the CPU kernels.
        model: None while asleep at level 2.
        cache: of the model, while awake.
        rows: what stays of each row from step to step.

    Raises:
        CheckpointError: the weights cannot be loaded, or there is no room for them and a cache.
        ConfigError: the limits contradict each other, or this machine cannot honour one.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: OnProgress | None = None,
        *,
        num_steps_ahead: int | None = None,
        capture: Capture | None = None,
        library: Library | None = None,
    ) -> None:
        self._config = config
        self._device = choose_device()
        is_cuda = self._device.type == "cuda"
        is_eager = config.scheduler.enforce_eager
        self.library = Library() if library is None else library
        self._build = Build(self.library) if library is None and not (is_cuda or is_eager) else None
        self._capture = CudaCapture() if capture is None and is_cuda and not is_eager else capture
        self._plans_launches = is_cuda or capture is not None
        self._loaded = config  # what weights are read by
        self.model: Model | None = None
        self._num_parameters = self._load_weights(on_progress)
        room = budget(config, self._device)
        logger.info("%s", room)
        ahead = int(is_cuda) if num_steps_ahead is None else num_steps_ahead
        self._info = RunnerInfo(
            device=str(self._device),
            num_parameters=self._num_parameters,
            num_blocks=room.num_blocks,
            num_steps_ahead=ahead,
        )
        self._in_flight: deque[InFlight] = deque()
        self._grammars = Grammars(config.tokenizer_path, config.model.vocab_size)
        self._tables = rotary_tables(config.model, config.max_model_len, self._device)
        self._take_memory()
        if self._build is not None:
            self._build.start()

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def num_counted_rows(self) -> int:
        """Rows of counts that memory is taken for: at most twice as many as have had penalties at once."""
        return self._edits.num_counted_rows

    def prepare(self, grammar: str, eos_token_ids: tuple[int, ...]) -> None:
        self._grammars.prepare(grammar, eos_token_ids)

    @torch.inference_mode()
    def submit(self, plan: Plan) -> None:
        for row in plan.ended:
            self._end(row)
        for start in plan.started:
            self._end(start.row)
            self._start(start)
        for work in plan.work:
            self.rows.extend(work)
        self._row_grammars.begin(plan.work)
        batch = build_batch(plan.work)
        x = self._forward(batch)  # [T, D]
        prompts = self._report_prompts(plan.work, batch, x)
        self._in_flight.append(self._sample(plan.work, batch, x, prompts))

    @torch.inference_mode()
    def collect(self) -> list[RowResult]:
        return self._in_flight.popleft().take()

    def reset(self) -> None:
        self._in_flight.clear()
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # raises if the device is lost
        self._take_memory()

    def sleep(self, level: int) -> None:
        self._drop_memory()
        if level >= 2:
            self.model = None
        torch.cuda.empty_cache()  # does nothing where there is no GPU

    def wake_up(self) -> None:
        if self.model is None:
            self._load_weights(None)
        self._take_memory()

    def replace_weights(self, path: str) -> None:
        before = self._loaded
        self._loaded = msgspec.structs.replace(before, files=ModelFiles(path=path), load_format="safetensors")
        try:
            self._load_weights(None)
        except BaseException:
            self._loaded = before
            raise
        if self._is_awake:
            self._take_memory()

    @torch.inference_mode()
    def trace(self, token_ids: list[int]) -> list[object]:
        """As one prefill of a cache of its own."""
        assert self.model is not None
        stream: list[torch.Tensor] = []
        x = self._run_alone(token_ids, lambda x: stream.append(x.float().cpu()))
        return [*stream, self.model.logits(x).cpu()]

    def close(self) -> None:
        if self._build is not None:
            self._build.close()
        self._drop_memory()
        self.model = None
        torch.cuda.empty_cache()

    def _start(self, start: RowStart) -> None:
        """A sequence takes a row."""
        self.rows.start(start)
        self._edits.start(start)
        self._row_grammars.start(start)

    def _end(self, row: int) -> None:
        """Its sequence has left."""
        self.rows.end(row)
        self._edits.end(row)
        self._row_grammars.end(row)

    # ------------------------------------------------------------------ memory

    @torch.inference_mode()
    def _load_weights(self, on_progress: OnProgress | None) -> int:
        """Returns the number of parameters."""
        model = self._config.model
        weights = fuse(model, iterate_weights(self._loaded, self._device, on_progress))
        num_parameters = sum(w.numel() for w in weights.values())
        self.model = Model(model, weights, self.library)
        return num_parameters

    @torch.inference_mode()
    def _take_memory(self) -> None:
        """A cache with nothing in it, rows that nobody has, and what is captured over them."""
        self._drop_memory()
        limits = self._config.scheduler
        self.cache = self._new_cache(self._info.num_blocks)
        self.rows = Rows(limits.max_num_seqs, self.cache.max_blocks)
        self._edits = Edits(self._config.model.vocab_size, self._device, self.library)
        self._row_grammars = RowGrammars(self._grammars, self._config.model.vocab_size, self._device, self.library)
        self._sampler = Sampler(self.rows, self._edits, self._row_grammars, self._config.logprobs_mode, self.library)
        self._latest = torch.zeros(limits.max_num_seqs, dtype=torch.int64, device=self._device)  # sampled, by row
        self._graphs: DecodeGraphs | None = None
        if self._device.type == "cuda":
            self._warm_up()
        if self._capture is not None:
            assert self.model is not None
            sizes = batch_sizes(min(limits.max_num_seqs, limits.max_num_batched_tokens))
            self._graphs = DecodeGraphs(self.model, self.cache, self.rows.tables, sizes, self._capture)

    @property
    def _is_awake(self) -> bool:
        return hasattr(self, "cache")

    def _drop_memory(self) -> None:
        self._in_flight.clear()
        if self._is_awake:
            self._row_grammars.close()
        for name in ("cache", "rows", "_edits", "_row_grammars", "_sampler", "_latest", "_graphs"):
            self.__dict__.pop(name, None)

    def _new_cache(self, num_blocks: int) -> PagedCache:
        assert self.model is not None
        return PagedCache(
            self._config.model,
            self._config.max_model_len,
            num_blocks,
            self._config.scheduler.block_size,
            self.model.dtype,
            self._tables,
            self.library,
            self._plans_launches,
        )

    def _warm_up(self) -> None:
        """Compile kernels, so that no request waits for it."""
        assert self.model is not None
        config, moe = self._config, self._config.model.moe
        lengths = {1, WARM_UP_TOKENS}
        if moe is not None:
            lengths.update(tokens_by_tile(moe.num_experts, moe.num_experts_per_tok))
        most = min(config.max_model_len, config.scheduler.max_num_batched_tokens)
        for length in sorted({min(length, most) for length in lengths}):
            logits = self.model.logits(self._run_alone([0] * length))
        self._run_alone([0], position=min(SPLIT_SIZE, config.max_model_len - 1))
        all_of_it = SamplingParams(top_k=2, top_p=0.5, presence_penalty=1, allowed_token_ids=[0])
        start = RowStart(0, all_of_it, 0, 0, (), (), "", 1, [], [0])
        self._start(start)
        self._sampler.sample(logits[-1:], [Asked(0, 0)]).take()
        self._end(0)

    # ------------------------------------------------------------------ the parts of a step

    def _forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [T, D]."""
        x = self._graphs.forward(batch, self._put_taken) if self._graphs is not None else None
        if x is not None:
            return x
        return self._run(batch, self.cache.lay_out(batch, self.rows.tables), self.cache)

    def _run(self, batch: Batch, laid_out: CacheStep, cache: PagedCache, seen: Seen | None = None) -> torch.Tensor:
        """Hidden states [T, D] of a step on the host; ``seen`` as in ``Model.forward``."""
        assert self.model is not None
        step = laid_out.to(self._device)
        self._put_taken(batch, step.token_ids)
        return self.model.forward(step.token_ids, cache.attend(step), seen)

    def _run_alone(self, token_ids: list[int], seen: Seen | None = None, position: int = 0) -> torch.Tensor:
        """Hidden states [T, D] of consecutive tokens in a cache of their own; what is before them is any numbers."""
        num_blocks = -(-(position + len(token_ids)) // self._config.scheduler.block_size)
        cache = self._new_cache(num_blocks)
        batch = build_batch([RowWork(0, position, token_ids, False, 0, [], [])])
        tables = torch.zeros((1, cache.max_blocks), dtype=torch.int32)
        tables[0, :num_blocks] = torch.arange(num_blocks)
        return self._run(batch, cache.lay_out(batch, tables), cache, seen)

    def _put_taken(self, batch: Batch, token_ids: torch.Tensor) -> None:
        """Put tokens that were sampled into the step where only the device knows them."""
        if batch.taken[0]:
            places, rows = to_device([torch.tensor(x) for x in batch.taken], self._device)
            token_ids.index_copy_(0, places, self._latest.index_select(0, rows))

    def _report_prompts(self, work: list[RowWork], batch: Batch, x: torch.Tensor) -> list[PromptReport]:
        """Log-probabilities of prompt tokens that follow this step's, for rows that ask for them."""
        assert self.model is not None
        reports = []
        for chunk, i in zip(batch.chunks, batch.work, strict=True):
            following = work[i].reported_ids
            num_top = self.rows.started(chunk.row).sampling.prompt_logprobs or 0
            rows = max(1, MAX_LOGITS // self._config.model.vocab_size)
            for start in range(0, len(following), rows):
                [ids] = to_device([torch.tensor(following[start : start + rows])], self._device)
                first = chunk.start + start
                logits = self.model.logits(x[first : first + len(ids)])
                copy = ToHost(
                    [logits.amax(-1), *report(logits, ids, num_top, self._config.logprobs_mode.endswith("_logprobs"))]
                )
                reports.append(PromptReport(i, num_top, copy))
        return reports

    def _sample(self, work: list[RowWork], batch: Batch, x: torch.Tensor, prompts: list[PromptReport]) -> InFlight:
        """Sample from the logits of hidden states [T, D] of the last tokens of those rows that ask for it."""
        assert self.model is not None
        places: list[int] = []
        asked: list[Asked] = []
        sampled: list[int] = []
        ends: list[int] = []  # of each run of tokens of one row, the last
        for chunk, i in zip(batch.chunks, batch.work, strict=True):
            count = work[i].num_samples
            if not count:
                continue
            first = chunk.context - count + 1 - self.rows.started(chunk.row).num_prompt_tokens
            places += range(chunk.end - count, chunk.end)
            asked += [Asked(chunk.row, first + j) for j in range(count)]
            sampled.append(i)
            ends.append(len(asked) - 1)
        if not asked:
            return InFlight(work, [], None, prompts, ToHost([x[:1, :1].float()]), {}, False, [])
        if len(asked) < batch.num_tokens:
            [at] = to_device([torch.tensor(places)], self._device)
            x = x.index_select(0, at)
        logits = self.model.logits(x)
        if self._row_grammars.waits(work):
            for step in self._in_flight:
                step.take()
        pending = self._sampler.sample(logits, asked)
        if self._info.num_steps_ahead:
            rows, last = to_device([torch.tensor([asked[e].row for e in ends]), torch.tensor(ends)], self._device)
            self._latest.index_copy_(0, rows, pending.tokens.index_select(0, last))
        grammars = {i: grammar for i in sampled if (grammar := self._row_grammars.sampled(work[i].row)) is not None}
        limits = self._config.scheduler
        has_room = len(asked) < limits.max_num_seqs and not self._info.num_steps_ahead
        return InFlight(work, sampled, pending, prompts, None, grammars, has_room, [])


def _accepted(work: RowWork, tokens: list[Sampled]) -> RowResult:
    """Of a row's sampled tokens those that count: each next one as long as its draft was the token before it."""
    drafts = work.token_ids[len(work.token_ids) - work.num_drafts :]
    count = 1
    while count < len(tokens) and tokens[count - 1].error is None and tokens[count - 1].token_id == drafts[count - 1]:
        count += 1
    kept = tokens[:count]
    if kept[-1].error is not None:
        if count == 1:
            return RowResult(error=kept[-1].error)
        kept = kept[:-1]  # the next step will find the error alone
    columns = [token.logprobs for token in kept if token.logprobs is not None]
    return RowResult([token.token_id for token in kept], LogprobColumns.join(columns) if columns else None)
