"""Chat messages to a prompt, with a model's Jinja template.

The variables that templates on the hub rely on: ``messages``, ``tools``, ``documents``, ``add_generation_prompt`` and
the special tokens. Templates run in processes of their own (``template_process.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tandem.errors import ConfigError, RequestError
from tandem.text.template_process import OF_CHECKPOINTS, OF_REQUESTS, TemplateProcesses

Message = Mapping[str, Any]
RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MAX_TEMPLATE_BYTES = 2**20
# Marks where the text of a final message ends. A noncharacter: if somebody sends it, losing it is all that happens.
END_OF_FINAL = "\ufdd1"
PROBE = "Which way do you want it?"
CONTENT_FORMATS = ("auto", "string", "openai")


class ChatTemplate:
    """A template that compiles. Its methods may be called from any thread, and block.

    Args:
        source: Jinja text.
        special_tokens: offered to the template by role, such as ``bos_token``.
        processes: where it runs; by default where those that requests bring do.
        content_format: how it wants content: ``string``, ``openai`` (a list of parts), or ``auto``, which tries.

    Raises:
        RequestError: the text is no valid template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        processes: TemplateProcesses = OF_REQUESTS,
        content_format: str = "auto",
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._processes = processes
        processes.compile(source)
        self._keeps_parts = self._wants_parts() if content_format == "auto" else content_format == "openai"

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        rewrite: Callable[[str], str] | None = None,
    ) -> str:
        """The prompt of a conversation; special tokens stand in it as text.

        Args:
            messages: OpenAI-shaped; see ``plain_messages`` for what templates are given.
            continue_final_message: end the prompt inside the last message, for the model to go on with it.
            variables: further template variables (``chat_template_kwargs``).
            rewrite: applied to every string that the template is given, except its special tokens.

        Raises:
            RequestError: the template refuses the conversation, or takes too long or too much room for it.
        """
        if continue_final_message and add_generation_prompt:
            message = "continue_final_message needs add_generation_prompt to be false"
            raise RequestError(message, "continue_final_message")
        _check_variables(variables or {}, tools, documents)
        given = {
            "messages": plain_messages(messages, self._keeps_parts),
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
        }
        if rewrite is not None:
            try:
                given, variables = _rewritten(given, rewrite), _rewritten(variables or {}, rewrite)
            except RecursionError as error:
                raise RequestError("the conversation is nested too deeply", "messages") from error
        context = {
            **self._special_tokens,
            **(variables or {}),
            **given,
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return self._render_up_to_final(context)
        return self._processes.render(self.source, context)

    def _wants_parts(self) -> bool:
        """Whether it shows the text of a content part, but not that of content that is a string."""
        return not self._shows(PROBE) and self._shows([{"type": "text", "text": PROBE}])

    def _shows(self, content: Any) -> bool:
        context = {**self._special_tokens, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text = self._processes.render(
                self.source, {**context, "messages": [{"role": "user", "content": content}]}
            )
        except RequestError:
            return False
        return PROBE in text and "'type'" not in text and '"type"' not in text

    def _render_up_to_final(self, context: dict[str, Any]) -> str:
        """The prompt up to the end of the last message's text, as the template shows it.

        The text's end is marked, and whitespace after it follows the mark: what of that a template strips, it strips
        there as it would without the mark.
        """
        *before, final = context["messages"] or [{"content": ""}]
        content = _plain_content(final["content"], len(before))
        text = content.rstrip()
        trailing = content[len(text) :]
        shown = text + END_OF_FINAL + trailing
        marked = [*before, {**final, "content": _as_parts(shown, 0) if self._keeps_parts else shown}]
        rendered = self._processes.render(self.source, {**context, "messages": marked})
        prompt, mark, after = rendered.rpartition(END_OF_FINAL)
        if not mark or not text:
            raise RequestError("the chat template does not show the last message's text", "continue_final_message")
        return prompt.replace(END_OF_FINAL, "") + os.path.commonprefix([trailing, after])


def load_chat_template(
    option: str | None, own: str | None, special_tokens: Mapping[str, str], content_format: str = "auto"
) -> ChatTemplate | None:
    """The template to use: ``--chat-template`` as a file or as text, else the model's own, else none.

    Raises:
        ConfigError: the option names no file and is no template, or the template does not compile.
    """
    source = own if option is None else _template_of_option(option)
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens, OF_CHECKPOINTS, content_format)
    except RequestError as error:
        raise ConfigError("--chat-template", str(error)) from error


def _template_of_option(option: str) -> str:
    if "{" in option or "\n" in option:
        return option
    path = Path(option)
    try:
        if not path.is_file():
            raise ConfigError("--chat-template", f"there is no file {option}, and it is not a template's text")
        return read_template(path)
    except (OSError, ValueError) as error:
        raise ConfigError("--chat-template", f"{option} cannot be read as text: {error}") from error


def read_template(file: Path) -> str:
    """The text of a template's file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or larger than any template.
    """
    if file.stat().st_size > MAX_TEMPLATE_BYTES:
        raise ValueError(f"it is larger than {MAX_TEMPLATE_BYTES} bytes")
    return file.read_text(encoding="utf-8")


def _check_variables(variables: Mapping[str, Any], tools: Any, documents: Any) -> None:
    clashes = RESERVED_VARIABLES & set(variables)
    if clashes:
        raise RequestError(f"chat_template_kwargs may not set {sorted(clashes)[0]}", "chat_template_kwargs")
    for name, value in (("tools", tools), ("documents", documents)):
        if value is not None and not _is_list_of_objects(value):
            raise RequestError(f"{name} must be a list of objects", name)


def plain_messages(messages: Sequence[Message], keeps_parts: bool = False) -> list[dict[str, Any]]:
    """Messages as templates expect them: tool-call arguments as the objects they are, ``None`` left out.

    Args:
        keeps_parts: the template wants content as a list of parts; else the texts of parts are joined.

    Raises:
        RequestError: a message is malformed, or a part is not text.
    """
    plain = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError("a message must be an object with a role and content", f"messages[{i}]")
        fields = {k: v for k, v in message.items() if v is not None}
        if not isinstance(fields.get("role", ""), str):
            raise RequestError("a role must be a string such as user", f"messages[{i}].role")
        content = fields.get("content")
        fields["content"] = _as_parts(content, i) if keeps_parts else _plain_content(content, i)
        if "tool_calls" in fields:
            fields["tool_calls"] = _plain_calls(fields["tool_calls"], i)
        plain.append(fields)
    return plain


def _plain_content(content: Any, i: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not _is_list_of_objects(content):
        raise RequestError("content must be a string or a list of content parts", f"messages[{i}].content")
    return "\n".join(_text_of(part, i) for part in content)


def _as_parts(content: Any, i: int) -> list[dict[str, Any]]:
    """Content as a list of parts of type ``text``, with what else they have."""
    if not _is_list_of_objects(content):
        text = _plain_content(content, i)
        return [{"type": "text", "text": text}] if text else []
    return [{**part, "type": "text", "text": _text_of(part, i)} for part in content]


def _text_of(part: Mapping[str, Any], i: int) -> str:
    kind, param = part.get("type", "text"), f"messages[{i}].content"
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise RequestError(f"this model reads text only, not a content part of type {str(kind)[:100]!r}", param)
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise RequestError(f"a content part of type {kind!r} needs {TEXT_PARTS[kind]}, a string", param)
    return text


def _plain_calls(calls: Any, i: int) -> list[dict[str, Any]]:
    if not _is_list_of_objects(calls):
        raise RequestError("tool_calls must be a list of objects", f"messages[{i}].tool_calls")
    return [_plain_call(call, f"messages[{i}].tool_calls[{j}].function") for j, call in enumerate(calls)]


def _plain_call(call: Mapping[str, Any], param: str) -> dict[str, Any]:
    function = call.get("function") or {}
    if not isinstance(function, Mapping):
        raise RequestError("a tool call's function must be an object", param)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _decoded(arguments)
    if not isinstance(arguments, (Mapping, str)):
        raise RequestError("tool-call arguments must be text or an object", f"{param}.arguments")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _decoded(arguments: str) -> Mapping[str, Any] | str:
    """The object that arguments stand for; as text where a model once wrote something else."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value)


def _rewritten(value: Any, rewrite: Callable[[str], str]) -> Any:
    """A copy of plain data with each string, keys among them, rewritten."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {_rewritten(key, rewrite): _rewritten(item, rewrite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(item, rewrite) for item in value]
    return value
