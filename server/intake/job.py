"""A request that may go to the engine: everything that could refuse it has been asked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from server.intake.answers import AnswerPlan
from server.intake.prompts import Prompt
from server.schemas.common import GenerationRequest
from server.state import LoadedModel
from tandem.engine import EngineRequest
from tandem.errors import RequestError
from tandem.generation.beam_search import BeamParams
from tandem.generation.decoding import PLAIN, Reading
from tandem.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """What a dialect needs of its request.

    Attributes:
        requests: all choices of all prompts, in order.
        reading: how answers are read.
        search: for the most likely answers; None where they are sampled.
    """

    request: GenerationRequest
    sampling: SamplingParams
    prompts: list[Prompt]
    requests: list[EngineRequest]
    reading: Reading = PLAIN
    search: BeamParams | None = None

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        model: LoadedModel,
        sampling: SamplingParams,
        prompts: list[Prompt],
        arrival_time: float,
        plan: AnswerPlan | None = None,
    ) -> Job:
        """Ask admission. May take long: see ``WorkPool``.

        Args:
            plan: what the answer may be, and how it is read; None for text of the form that the request asks for.

        Raises:
            RequestError: a prompt or a parameter is refused.
        """
        check_priority(model, request)
        admission, group = model.generator.admission, uuid.uuid4().hex
        plan = plan or AnswerPlan(PLAIN, "", request.form[0])
        terms = admission.terms(sampling, plan.grammar, plan.param)
        requests = [
            choice
            for prompt in prompts
            for choice in admission.admit(
                prompt.token_ids,
                terms,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
                group=group,
                arrival_time=arrival_time,
            )
        ]
        search = None
        if request.use_beam_search:
            admission.require_logprobs("use_beam_search")
            penalty = 1.0 if request.length_penalty is None else request.length_penalty
            search = BeamParams(width=sampling.n, length_penalty=penalty)
            if 2 * search.width > model.info.vocab_size:
                raise RequestError(f"n must be at most half of the {model.info.vocab_size} tokens", "n")
        return cls(request, sampling, prompts, requests, plan.reading, search)


def check_priority(model: LoadedModel, request: GenerationRequest) -> None:
    """Raise ``RequestError`` for a priority that the server's scheduling would not look at."""
    if request.priority and model.resolved.engine.scheduler.scheduling_policy != "priority":
        message = "priority needs a server that runs with --scheduling-policy priority"
        raise RequestError(message, "priority", "unsupported_parameter")
