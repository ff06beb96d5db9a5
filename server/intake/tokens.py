"""A request for token ids, as a job."""

from __future__ import annotations

from server.intake.answers import AnswerPlan
from server.intake.job import Job
from server.intake.prompts import Prompt
from server.intake.sampling import check_prompt_logprobs
from server.schemas.common import GenerationRequest
from server.schemas.vendors.generate import TokensRequest
from server.state import LoadedModel
from tandem.errors import ContextLengthError, RequestError
from tandem.generation.decoding import PLAIN, Reading
from tandem.sampling_params import SamplingParams

_OURS = {"prompt": "token_ids", "priority": "priority"}  # all others are among the sampling parameters


def tokens_job(model: LoadedModel, request: TokensRequest, arrival_time: float) -> Job:
    """Ask admission. Tokens become text only where text is wanted or looked for.

    Raises:
        RequestError: something is refused; ``param`` is a field of ``request``.
    """
    common = GenerationRequest(
        stream=request.stream,
        stream_options=request.stream_options,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )
    try:
        sampling = SamplingParams(**request.sampling.given)
        check_prompt_logprobs(sampling, len(request.token_ids), "prompt_logprobs")
        reading = PLAIN if request.wants_text or sampling.stop else Reading(decodes=False)
        plan = AnswerPlan(reading, "", "structured_outputs")
        return Job.of(common, model, sampling, [Prompt(request.token_ids, "")], arrival_time, plan)
    except RequestError as error:
        param = None if error.param is None else _OURS.get(error.param, f"sampling_params.{error.param}")
        if isinstance(error, ContextLengthError):
            raise ContextLengthError(str(error), param) from error
        raise RequestError(str(error), param, error.code) from error
