"""A read: a prompt, and tokens whose probabilities at the first position of its answer are all that is wanted."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from server.dialects.dialect import Choice
from server.intake.job import Job, check_priority
from server.intake.prompts import Prompt
from server.schemas.common import GenerationRequest
from server.state import LoadedModel
from tandem.errors import ContextLengthError, RequestError
from tandem.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Read:
    """One of them.

    Attributes:
        options: what may be answered, each the tokens that stand for it; all tokens are different.
        place: the field of the request that is to blame for the prompt.
    """

    prompt: Prompt
    options: tuple[tuple[int, ...], ...]
    place: str


@dataclass(frozen=True, slots=True)
class ReadJob(Job):
    """The job of a request's reads, which run together."""

    reads: tuple[Read, ...] = ()


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a read has brought.

    Attributes:
        logprobs: of the options, in the model's whole distribution.
        shares: the options' probabilities among themselves; they add up to 1.
        mass: the probability of all options together in the model's whole distribution.
        argmax_is_option: the most likely token of all stands for an option.
    """

    logprobs: list[float]
    shares: list[float]
    mass: float
    argmax_is_option: bool

    @property
    def best(self) -> int:
        """The most likely option, the first of those that are equal."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def mean(self) -> float:
        """The expected number of an option, counted from 0."""
        return sum(i * share for i, share in enumerate(self.shares))

    @property
    def confidence(self) -> float:
        """The best option's probability in the model's whole distribution."""
        return math.exp(min(0.0, self.logprobs[self.best]))


def read_job(model: LoadedModel, request: GenerationRequest, reads: Sequence[Read], arrival_time: float) -> ReadJob:
    """Ask admission. May take long: see ``WorkPool``.

    Args:
        request: the priority and the cache salt of all reads.

    Raises:
        RequestError: a prompt is too long, or a token is not one of the model's.
    """
    check_priority(model, request)
    admission, group = model.generator.admission, uuid.uuid4().hex
    admission.require_logprobs(None)
    requests = []
    for read in reads:
        token_ids = [token_id for option in read.options for token_id in option]
        sampling = SamplingParams(temperature=0, seed=0, max_tokens=1, logprob_token_ids=token_ids)
        try:
            requests += admission.admit(
                read.prompt.token_ids,
                admission.terms(sampling),
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
                group=group,
                arrival_time=arrival_time,
            )
        except RequestError as error:
            place = read.place if error.param in ("prompt", "max_tokens") else error.param
            if isinstance(error, ContextLengthError):
                raise ContextLengthError(str(error), place) from error
            raise RequestError(str(error), place, error.code) from error
    prompts = [read.prompt for read in reads]
    return ReadJob(request, requests[0].sampling, prompts, requests, reads=tuple(reads))


def distribution(read: Read, choice: Choice) -> Distribution:
    """The probabilities of a read's options, from its finished choice."""
    (entry,) = (entry for columns in choice.logprobs for entry in columns)
    found = dict(zip(entry.top_ids, entry.top_logprobs, strict=True))
    logprobs = [_log_sum([found[token_id] for token_id in option]) for option in read.options]
    total = _log_sum(logprobs)
    shares = [math.exp(value - total) for value in logprobs]
    return Distribution(logprobs, shares, math.exp(min(0.0, total)), entry.token_id in found)


def _log_sum(values: Sequence[float]) -> float:
    """log Σ exp(x), for any x without overflow."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
