"""A conversation to answer, as a job: the way that all dialects for conversations go."""

from __future__ import annotations

from server.config import ServerConfig
from server.intake.answers import plan_answer
from server.intake.job import Job
from server.intake.prompts import chat_prompt, request_template
from server.intake.sampling import chat_sampling
from server.schemas.openai.chat import ChatRequest
from server.state import LoadedModel


def chat_job(model: LoadedModel, config: ServerConfig, request: ChatRequest, arrival_time: float) -> Job:
    """Template, tokenizer, grammar and admission. May take long: see ``WorkPool``.

    Args:
        request: the client's, or what another dialect's request means in terms of chat.

    Raises:
        RequestError: something is refused; ``param`` is a field of admission's (``prompt``, ``max_tokens``,
            ``logprobs``) or of chat's.
    """
    sampling = chat_sampling(request, model)
    template = request_template(model, request.chat_template, config.trust_request_chat_template)
    prompt = chat_prompt(model, request, template, config.response_role)
    plan = plan_answer(model, request, prompt.token_ids)
    return Job.of(request, model, sampling, [prompt], arrival_time, plan)
