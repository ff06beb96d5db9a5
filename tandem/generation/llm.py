"""The offline interface: a model in this process, without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tqdm import tqdm

from tandem.config import ModelOptions, resolve
from tandem.errors import ConfigError, RequestError
from tandem.generation.admission import Admission
from tandem.generation.outputs import ChoiceDecoder, ChoiceDelta, CompletionOutput, RequestOutput, as_dict, merge
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams
from tandem.text.chat_template import ChatTemplate, Message, load_chat_template
from tandem.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
Conversation = Sequence[Message]


class LLM:
    """A loaded model that completes prompts.

    Args:
        model: a directory, a hub id, or nothing for the bundled demonstration model.
        chat_template: a file or a template's text, instead of the model's own.
        options: further fields of :class:`tandem.config.ModelOptions`, such as ``backend``, ``dtype``,
            ``max_model_len``, ``seed``.

    Raises:
        ConfigError: an option is unknown or cannot be honoured.
        CheckpointError: the model cannot be loaded.
    """

    def __init__(self, model: str = "", *, chat_template: str | None = None, **options: Any) -> None:
        unknown = sorted(set(options) - set(ModelOptions.__struct_fields__))
        if unknown:
            raise ConfigError(unknown[0], "there is no such option")
        resolved = resolve(ModelOptions(model=model, **options))
        self._tokenizer = Tokenizer.from_directory(resolved.tokenizer_path)
        self._template = load_chat_template(
            chat_template, self._tokenizer.chat_template, self._tokenizer.special_tokens
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
            RequestError: one of the prompts is refused; none has been run then.
        """
        listed = _as_list(prompts)
        sampling = self._sampling_for(sampling_params, len(listed))
        jobs = [
            self._job(i, *self._tokenize(prompt), params)
            for i, (prompt, params) in enumerate(zip(listed, sampling, strict=True))
        ]
        return self._run(jobs, use_tqdm)

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
        template = self._template
        if chat_template is not None:
            template = ChatTemplate(chat_template, self._tokenizer.special_tokens)
        if template is None:
            raise RequestError("the model has no chat template; give one as chat_template", "messages")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            template.render(
                conversation,  # type: ignore[arg-type]
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        sampling = self._sampling_for(sampling_params, len(prompts), max_tokens=None)
        jobs = [
            self._job(i, prompt, self._tokenizer.encode(prompt, add_special_tokens=False), params)
            for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
        ]
        return self._run(jobs, use_tqdm)

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
        listed = [given] * count if isinstance(given, SamplingParams) else list(given)
        if len(listed) != count:
            raise RequestError(f"{len(listed)} sampling_params for {count} prompts", "sampling_params")
        return listed

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), list(prompt["prompt_token_ids"])
            prompt = str(prompt["prompt"])
        if isinstance(prompt, str):
            return prompt, self._tokenizer.encode(prompt)
        return None, list(prompt)

    def _job(self, i: int, prompt: str | None, token_ids: list[int], sampling: SamplingParams) -> _Job:
        requests = self._admission.admit(token_ids, sampling)
        outputs = [CompletionOutput(index) for index in range(sampling.n)]
        result = RequestOutput(str(i), prompt, token_ids, outputs)
        decoders = {
            request.request_id: ChoiceDecoder(self._tokenizer, sampling, request.choice_index) for request in requests
        }
        return _Job(result, decoders, requests)

    def _run(self, jobs: list[_Job], use_tqdm: bool) -> list[RequestOutput]:
        owners = {request_id: job for job in jobs for request_id in job.decoders}
        for job in jobs:
            for request in job.requests:
                self._engine.add(request)
        try:
            with tqdm(total=len(owners), desc="Generating", unit="answer", disable=not use_tqdm) as bar:
                for job, delta in self._deltas(owners):
                    job.take(delta)
                    bar.update(delta.finish_reason is not None)
        finally:
            for request_id in owners:  # after an interrupt; finished ones are unknown to the engine
                self._engine.abort(request_id)
        return [job.result for job in jobs]

    def _deltas(self, owners: dict[str, _Job]) -> Iterator[tuple[_Job, ChoiceDelta]]:
        while self._engine.has_unfinished:
            for output in self._engine.step():
                job = owners[output.request_id]
                delta = job.decoders[output.request_id].decode(output)
                if delta.finish_reason is not None:
                    self._engine.abort(output.request_id)
                yield job, delta


@dataclass(slots=True)
class _Job:
    """A prompt on its way through the engine."""

    result: RequestOutput
    decoders: dict[str, ChoiceDecoder]
    requests: list[Any] = field(default_factory=list)

    def take(self, delta: ChoiceDelta) -> None:
        result = self.result
        merge(delta, result.outputs[delta.index])
        if delta.prompt_logprobs is not None:
            result.prompt_logprobs = [as_dict(entry) if entry else None for entry in delta.prompt_logprobs]
        result.num_cached_tokens = max(result.num_cached_tokens, delta.num_cached_tokens)
        result.finished = all(output.finish_reason is not None for output in result.outputs)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a text, a mapping and a list of numbers are one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
