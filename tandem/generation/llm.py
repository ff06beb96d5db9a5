"""The offline interface: a model in this process, without a server."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from tqdm import tqdm

from tandem.config import ModelOptions, resolve
from tandem.engine import EngineOutput, EngineRequest
from tandem.errors import ConfigError, RequestError
from tandem.events import AnyEvent, ChoiceEnded, PromptScored
from tandem.generation.admission import MAX_CHOICES, Admission, Terms
from tandem.generation.beam_search import Beam, BeamParams, BeamSearch
from tandem.generation.decoding import Choices
from tandem.generation.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    RequestOutput,
    as_dict,
)
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams
from tandem.text.chat_template import ChatTemplate, Message, load_chat_template
from tandem.text.conversation import ConversationEncoder
from tandem.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
Conversation = Sequence[Message]


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True):
    """How ``LLM.beam_search`` searches; see ``tandem.generation.beam_search``."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0


class LLM:
    """A loaded model that completes prompts.

    Args:
        model: a directory, a hub id, or nothing for the bundled demonstration model.
        chat_template: a file or a template's text, instead of the model's own.
        allow_special_tokens_in_content: special tokens in messages are tokens; else they are the text they are.
        options: further fields of :class:`tandem.config.ModelOptions`, such as ``backend``, ``dtype``,
            ``max_model_len``, ``seed``.

    Raises:
        ConfigError: an option is unknown or cannot be honoured.
        CheckpointError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str = "",
        *,
        chat_template: str | None = None,
        allow_special_tokens_in_content: bool = False,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - set(ModelOptions.__struct_fields__))
        if unknown:
            raise ConfigError(unknown[0], "there is no such option")
        resolved = resolve(ModelOptions(model=model, **options))
        self._tokenizer = Tokenizer.from_directory(resolved.tokenizer_path)
        template = load_chat_template(chat_template, self._tokenizer.chat_template, self._tokenizer.special_tokens)
        self._encoder = ConversationEncoder(
            self._tokenizer, template, allow_special_tokens=allow_special_tokens_in_content
        )
        self._default_sampling = resolved.default_sampling
        self._engine = create_engine(resolved.engine)
        self._admission = Admission(resolved, self._engine.info, self._tokenizer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts; results come in their order.

        Args:
            prompts: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``, or a list of these.
            sampling_params: for all prompts or one for each; by default the model's recommended values.

        Raises:
            RequestError: an argument is of a wrong type, or one of the prompts is refused; none has been run then.
        """
        read = [self._read(prompt) for prompt in _as_list(prompts)]
        return self._run(self._jobs(read, self._sampling_for(sampling_params, len(read))), use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer conversations; results come in their order.

        Args:
            messages: one conversation, or a list of them, in OpenAI's shape.
            tools: function definitions the template shows the model; its calls come back as text.
            chat_template: a template's text for this call.
            chat_template_kwargs: further variables of the template, such as ``enable_thinking``.

        Raises:
            RequestError: a conversation is refused, or the model has no chat template.
        """
        template = None if chat_template is None else ChatTemplate(chat_template, self._tokenizer.special_tokens)
        encoded = [
            self._encoder.encode(
                conversation,
                template=template,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
                measure=self._admission.measure,
            )
            for conversation in _as_conversations(messages)
        ]
        read = [(self._tokenizer.decode(token_ids), token_ids) for token_ids in encoded]
        sampling = self._sampling_for(sampling_params, len(read), max_tokens=None)
        return self._run(self._jobs(read, sampling), use_tqdm)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The most likely answers to prompts, which are as for ``generate``; results come in their order.

        Raises:
            RequestError: an argument is of a wrong type, or one of the prompts is refused.
            RequestFailedError: the engine failed on one of them.
        """
        width, vocabulary = params.beam_width, self._engine.info.vocab_size
        if not 1 <= width <= min(MAX_CHOICES, vocabulary // 2):
            raise RequestError(f"beam_width must be in [1, {min(MAX_CHOICES, vocabulary // 2)}]", "beam_width")
        self._admission.require_logprobs("beam_search")
        sampling = SamplingParams(temperature=0, max_tokens=params.max_tokens, ignore_eos=params.ignore_eos)
        terms = self._admission.terms(sampling)
        read = [self._read(prompt)[1] for prompt in _as_list(prompts)]
        limits = BeamParams(width=width, length_penalty=params.length_penalty)
        searches = [BeamSearch(self._admission.admit(token_ids, terms)[0], limits) for token_ids in read]
        with tqdm(total=len(searches), desc="Searching", unit="prompt", disable=not use_tqdm) as bar:
            while left := [search for search in searches if not search.is_done]:
                outputs = self._outputs([request for search in left for request in search.requests()])
                for search in left:
                    search.take(outputs)
                    bar.update(search.is_done)
        return [
            BeamSearchOutput([self._sequence(token_ids, beam) for beam in search.best()])
            for token_ids, search in zip(read, searches, strict=True)
        ]

    def _outputs(self, requests: list[EngineRequest]) -> dict[str, EngineOutput]:
        """The last output of each request, by id."""
        for request in requests:
            self._engine.add(request)
        outputs: dict[str, EngineOutput] = {}
        while self._engine.has_unfinished:
            outputs |= {output.request_id: output for output in self._engine.step()}
        return outputs

    def _sequence(self, prompt: list[int], beam: Beam) -> BeamSearchSequence:
        tokens = [*prompt, *beam.token_ids]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return BeamSearchSequence(tokens, text, beam.logprob, beam.finish_reason)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The values the model recommends, neutral where it recommends none."""
        return SamplingParams(**self._default_sampling)

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._engine.close()

    def _sampling_for(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int, **defaults: Any
    ) -> list[SamplingParams]:
        if given is None:
            given = msgspec.structs.replace(self.get_default_sampling_params(), **defaults)
        listed = [given] * count if isinstance(given, SamplingParams) else _as_sequence(given, "sampling_params")
        if not all(isinstance(item, SamplingParams) for item in listed):
            raise RequestError("sampling_params must be SamplingParams, one or a list of them", "sampling_params")
        if len(listed) != count:
            raise RequestError(f"{len(listed)} sampling_params for {count} prompts", "sampling_params")
        return listed

    def _read(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text of a prompt, if it is known, and its token ids."""
        if isinstance(prompt, Mapping):
            text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if token_ids is not None:
                return text, _as_token_ids(token_ids)
            if not isinstance(text, str):
                raise RequestError("a prompt's mapping must hold prompt, a text, or prompt_token_ids", "prompts")
            prompt = text
        if isinstance(prompt, str):
            return prompt, self._admission.encode(prompt)
        return None, _as_token_ids(prompt)

    def _jobs(self, read: Sequence[tuple[str | None, list[int]]], sampling: list[SamplingParams]) -> list[_Job]:
        """Nothing has reached the engine yet. Prompts with the same parameters share what these cost."""
        terms: dict[int, Terms] = {id(params): self._admission.terms(params) for params in sampling}
        jobs = []
        for i, ((text, token_ids), params) in enumerate(zip(read, sampling, strict=True)):
            requests = self._admission.admit(token_ids, terms[id(params)])
            result = RequestOutput(str(i), text, token_ids, [CompletionOutput(index) for index in range(params.n)])
            jobs.append(_Job(requests, Choices(self._tokenizer, requests), result))
        return jobs

    def _run(self, jobs: list[_Job], use_tqdm: bool) -> list[RequestOutput]:
        owners = {request.request_id: job for job in jobs for request in job.requests}
        for job in jobs:
            for request in job.requests:
                self._engine.add(request)
        try:
            with tqdm(total=len(owners), desc="Generating", unit="answer", disable=not use_tqdm) as bar:
                for num_ended in self._steps(owners):
                    bar.update(num_ended)
        finally:
            for request_id in owners:  # after an interrupt; finished ones are unknown to the engine
                self._engine.abort(request_id)
        return [job.result for job in jobs]

    def _steps(self, owners: Mapping[str, _Job]) -> Iterator[int]:
        """Step until all is done; yields how many choices have ended."""
        while self._engine.has_unfinished:
            for output in self._engine.step():
                job = owners[output.request_id]
                events, stopped = job.choices.take([output])
                for request_id in stopped:
                    self._engine.abort(request_id)
                yield sum(job.take(event) for event in events)


@dataclass(slots=True)
class _Job:
    """A prompt on its way through the engine."""

    requests: list[EngineRequest]
    choices: Choices
    result: RequestOutput

    def take(self, event: AnyEvent) -> bool:
        """Whether a choice has ended."""
        result = self.result
        if isinstance(event, PromptScored):
            result.prompt_logprobs = [None, *map(as_dict, event.logprobs)]
            return False
        result.outputs[event.choice].add(event)
        result.num_cached_tokens = self.choices.num_cached_tokens
        if not isinstance(event, ChoiceEnded):
            return False
        result.finished = all(output.finish_reason is not None for output in result.outputs)
        return True


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt or several: a text, a mapping and a list of numbers are one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    listed = _as_sequence(prompts, "prompts")
    return [listed] if listed and _is_integer(listed[0]) else listed


def _as_conversations(messages: Any) -> list[Conversation]:
    listed = _as_sequence(messages, "messages")
    if listed and isinstance(listed[0], Mapping):
        listed = [listed]
    for conversation in listed:
        is_list = isinstance(conversation, Iterable) and not isinstance(conversation, (str, Mapping))
        if not is_list or not all(isinstance(message, Mapping) for message in conversation):
            raise RequestError("a conversation must be a list of messages, each a mapping", "messages")
    return listed


def _as_token_ids(prompt: Any) -> list[int]:
    """Whatever counts as a list of integers, such as an array of NumPy."""
    if not isinstance(prompt, Iterable) or not all(map(_is_integer, prompt)):
        message = f"a prompt must be a text, a list of token ids or a mapping, not {type(prompt).__name__}"
        raise RequestError(message, "prompts")
    return [operator.index(token_id) for token_id in prompt]


def _is_integer(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def _as_sequence(given: Any, param: str) -> list[Any]:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise RequestError(f"{param} must not be of type {type(given).__name__}", param)
    return list(given)
