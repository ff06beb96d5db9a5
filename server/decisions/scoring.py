"""Scores of items: how likely the first of some tokens is to follow each. Wire format: vLLM's generative scoring."""

from __future__ import annotations

import math

from server.decisions.reads import Read, ReadJob, distribution, read_job
from server.dialects.dialect import Answer, Context, encode_json
from server.intake.prompts import Prompt
from server.schemas.common import GenerationRequest
from server.schemas.vendors.scoring import ScoringRequest
from server.state import LoadedModel
from tandem.errors import RequestError


def scoring_job(model: LoadedModel, request: ScoringRequest, arrival_time: float) -> ReadJob:
    """A read an item. Texts are tokenized apart and their tokens joined; special tokens are added to the query only.

    Raises:
        RequestError: something is refused; ``param`` is a field of the request.
    """
    if max(request.label_token_ids) >= model.info.vocab_size:
        message = f"label_token_ids must hold token ids in [0, {model.info.vocab_size})"
        raise RequestError(message, "label_token_ids")
    query = _ids(model, request.query, request.add_special_tokens is not False, "query")
    options = tuple((token_id,) for token_id in request.label_token_ids)
    reads = []
    for i, item in enumerate(request.items):
        place = f"items[{i}]"
        own = _ids(model, item, False, place)
        reads.append(Read(Prompt([*own, *query] if request.item_first else [*query, *own], ""), options, place))
    common = GenerationRequest(priority=request.priority, cache_salt=request.cache_salt)
    return read_job(model, common, reads, arrival_time)


def _ids(model: LoadedModel, text: str | list[int], add_special_tokens: bool, place: str) -> list[int]:
    if not isinstance(text, str):
        if text and max(text) >= model.info.vocab_size:
            raise RequestError(f"{place} must hold token ids in [0, {model.info.vocab_size})", place)
        return text
    try:
        return model.generator.admission.encode(text, add_special_tokens)
    except RequestError as error:
        raise RequestError(str(error), place, error.code) from error


class ScoringWriter:
    """One object with a score an item."""

    def __init__(self, context: Context, request: ScoringRequest) -> None:
        job = context.job
        assert isinstance(job, ReadJob)
        self._context, self._reads = context, job.reads
        self._among_labels = request.apply_softmax is not False

    def whole(self, answer: Answer) -> bytes:
        """The list, and the usage."""
        data = [{"index": i, "object": "score", "score": self._score(answer, i)} for i in range(len(self._reads))]
        common, usage = self._context.common, self._context.usage
        head = {name: common[name] for name in ("id", "object", "created", "model")}
        return encode_json({**head, "data": data, "usage": usage})

    def _score(self, answer: Answer, index: int) -> float:
        """The first label's probability among the labels, or among all tokens."""
        found = distribution(self._reads[index], answer.choices[index])
        return found.shares[0] if self._among_labels else math.exp(min(0.0, found.logprobs[0]))
