"""A prompt's way through the engine and back as text."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tandem.config import ResolvedModel
from tandem.engine import EngineRequest
from tandem.generation.admission import Admission
from tandem.generation.outputs import ChoiceDecoder, ChoiceDelta
from tandem.process.client import EngineClient
from tandem.sampling_params import SamplingParams
from tandem.text.tokenizer import Tokenizer


class Generation:
    """One prompt's ``n`` choices while they are being generated.

    Iterate once: each item holds the deltas that came since the last one, for any of the choices. Whoever stops early
    must call ``abort`` (again is fine), which frees what the engine holds for it.
    """

    def __init__(
        self, client: EngineClient, tokenizer: Tokenizer, requests: list[EngineRequest], sampling: SamplingParams
    ) -> None:
        self.num_prompt_tokens = len(requests[0].prompt_token_ids)
        self.arrival_time: float = requests[0].arrival_time
        self._decoders = {
            request.request_id: ChoiceDecoder(tokenizer, sampling, request.choice_index) for request in requests
        }
        self._stream = client.submit(requests)

    async def __aiter__(self) -> AsyncIterator[list[ChoiceDelta]]:
        """Deltas as they come, until every choice has its ``finish_reason``.

        Raises:
            EngineDeadError, EngineStalledError: the engine was lost on the way.
        """
        try:
            while not self._stream.finished:
                deltas = []
                for output in await self._stream.next():
                    decoder = self._decoders.get(output.request_id)
                    if decoder is None:  # ended by a stop string while this output was on its way
                        continue
                    delta = decoder.decode(output)
                    if delta.finish_reason is not None:
                        del self._decoders[output.request_id]
                        self._stream.abort([output.request_id])
                    deltas.append(delta)
                if deltas:
                    yield deltas
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop the choices that have not ended."""
        self._stream.abort()


class Generator:
    """What routes generate with: admission, engine and decoding of one model.

    Usable once the engine is ready.
    """

    def __init__(self, client: EngineClient, tokenizer: Tokenizer, model: ResolvedModel) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._admission = Admission(model, client.info, tokenizer)

    def generate(
        self, prompt_token_ids: list[int], sampling: SamplingParams, *, priority: int = 0, cache_salt: str = ""
    ) -> Generation:
        """Check a prompt and hand it to the engine.

        Raises:
            RequestError: it is refused; nothing has reached the engine.
            EngineError: the engine cannot take it now.
        """
        requests = self._admission.admit(prompt_token_ids, sampling, priority=priority, cache_salt=cache_salt)
        return Generation(self._client, self._tokenizer, requests, sampling)
