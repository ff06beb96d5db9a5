"""What tests of the paged engine share."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from optimized import OptimizedEngine
from tandem.engine import EngineRequest
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import Answer, llama_optimized, llama_reference, run

TOKEN_BYTES = 2 * 2 * 2 * 8 * 4  # that a token of the small Llama takes in the cache


def paged_llama(
    num_tokens: int | None = None, is_captured: bool = True, overlaps: bool = True, **scheduler: Any
) -> OptimizedEngine:
    """A small model with room for so many tokens; see ``as_on_a_gpu``."""
    size = None if num_tokens is None else num_tokens * TOKEN_BYTES
    return as_on_a_gpu(llama_optimized(kv_cache_memory_bytes=size, **scheduler), is_captured, overlaps)


def as_on_a_gpu(engine: OptimizedEngine, is_captured: bool = True, overlaps: bool = True) -> OptimizedEngine:
    """Lay decodes out for a captured graph, and capture none unless there is a GPU; begin steps before the one before
    is waited for. Or neither."""
    engine._graphs = None
    if is_captured:
        engine.capture_decodes(lambda forward: forward)
    engine._overlaps = overlaps
    return engine


def foreseeable(request: EngineRequest) -> EngineRequest:
    """The same without what would have each step wait for the one before."""
    replace = msgspec.structs.replace
    penalties = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    words = tuple(word for word in request.bad_words_token_ids if len(word) == 1)
    sampling = replace(request.sampling, logprobs=None, **penalties)
    return replace(request, sampling=sampling, bad_words_token_ids=words)


def poison(engine: OptimizedEngine) -> None:
    """Fill whatever no sequence has written with NaN, which spoils all that reads it."""
    scheduler = engine.scheduler
    size = scheduler.config.block_size
    written = {block: size for block in scheduler.pool._cached.values()}
    for sequence in scheduler.running:
        for place, block in enumerate(sequence.block_ids):
            count = min(size, max(0, sequence.num_computed_tokens - place * size))
            written[block] = max(written.get(block, 0), count)
    spoiled = torch.ones(scheduler.pool.num_blocks, size, dtype=torch.bool)
    for block, count in written.items():
        spoiled[block, :count] = False
    for layer in engine.cache.layers:
        for x in layer:
            x[spoiled] = float("nan")


def run_over_poison(engine: OptimizedEngine, requests: list[EngineRequest]) -> dict[str, Answer]:
    """Send all at once and step to the end, spoiling before each step what it must not read."""
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_unfinished:
        poison(engine)
        for output in engine.step():
            answers[output.request_id].take(output)
    return answers


def assert_as_told(requests: list[EngineRequest], answers: dict[str, Answer]) -> None:
    """Each is answered as the reference answers it alone."""
    for request in requests:
        want = run(llama_reference(), [request])[request.request_id]
        assert_same(llama_reference(), request, answers[request.request_id], want)
