"""All that an engine says of requests."""

from __future__ import annotations

import msgspec

from tandem.engine import Engine, EngineOutput, EngineRequest, TokenLogprobs


class Answer(msgspec.Struct):
    """All that an engine said of one request."""

    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None

    def take(self, output: EngineOutput) -> None:
        assert self.finish_reason is None, "an output after the last"
        self.token_ids += output.new_token_ids
        self.logprobs += list(output.logprobs or [])
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "the prompt was reported twice"
            self.prompt_logprobs = list(output.prompt_logprobs)
        self.finish_reason, self.stop_token_id = output.finish_reason, output.stop_token_id
        self.error = output.error


def run(engine: Engine, requests: list[EngineRequest]) -> dict[str, Answer]:
    """Send all at once, step to the end."""
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_unfinished:
        for output in engine.step():
            answers[output.request_id].take(output)
    return answers
