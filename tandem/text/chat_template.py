"""Chat messages to a prompt, with a model's Jinja template in a sandbox.

The variables, filters and globals are those that templates on the hub rely on: ``messages``, ``tools``,
``documents``, ``add_generation_prompt``, the special tokens, ``tojson``, ``raise_exception``, ``strftime_now``, loop
controls and ``{% generation %}``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tandem.errors import ConfigError, RequestError

Message = Mapping[str, Any]
MAX_RENDER_SECONDS = 5.0
MAX_RENDER_CHARS = 16 * 2**20
RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        special_tokens: offered to the template by role, such as ``bos_token``.

    Raises:
        jinja2.TemplateError: the text is no valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template = _environment().from_string(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation; special tokens stand in it as text.

        Args:
            messages: OpenAI-shaped; see ``plain_messages`` for what templates are given.
            continue_final_message: end the prompt inside the last message, for the model to go on with it.
            variables: further template variables (``chat_template_kwargs``).

        Raises:
            RequestError: the template refuses the conversation, or takes too long or too much room for it.
        """
        clashes = RESERVED_VARIABLES & set(variables or {})
        if clashes:
            raise RequestError(f"chat_template_kwargs may not set {sorted(clashes)[0]}", "chat_template_kwargs")
        if continue_final_message and add_generation_prompt:
            message = "continue_final_message needs add_generation_prompt to be false"
            raise RequestError(message, "continue_final_message")
        plain = plain_messages(messages)
        context = {
            **self._special_tokens,
            **(variables or {}),
            "messages": plain,
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
            _DEADLINE: _Deadline(),
        }
        try:
            prompt = self._collect(context)
        except RequestError:
            raise
        except _TEMPLATE_FAULTS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(f"the chat template refuses this conversation: {reason}", "messages") from error
        return _cut_after_last(prompt, plain) if continue_final_message else prompt

    def _collect(self, context: dict[str, Any]) -> str:
        parts, size = [], 0
        for part in self._template.generate(context):
            size += len(part)
            if size > MAX_RENDER_CHARS:
                raise RequestError(f"the rendered prompt exceeds {MAX_RENDER_CHARS} characters", "messages")
            parts.append(part)
        return "".join(parts)


def load_chat_template(option: str | None, own: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template to use: ``--chat-template`` as a file or as text, else the model's own, else none.

    Raises:
        ConfigError: the option names no file and is no template, or the template does not compile.
    """
    source = own
    if option is not None:
        looks_like_text = "{" in option or "\n" in option
        path = Path(option)
        if not looks_like_text and not path.is_file():
            raise ConfigError("--chat-template", f"there is no file {option}, and it is not a template's text")
        source = option if looks_like_text else path.read_text(encoding="utf-8")
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens)
    except jinja2.TemplateError as error:
        raise ConfigError("--chat-template", f"the template does not compile: {error}") from error


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: text parts joined, tool-call arguments as objects, ``None`` left out.

    Raises:
        RequestError: a content part is not text, or tool-call arguments are not a JSON object.
    """
    plain = []
    for i, message in enumerate(messages):
        fields = {k: v for k, v in message.items() if v is not None}
        fields["content"] = _plain_content(fields.get("content"), i)
        if "tool_calls" in fields:
            calls = [_plain_call(call, i, j) for j, call in enumerate(fields["tool_calls"])]
            fields["tool_calls"] = calls
        plain.append(fields)
    return plain


def _plain_content(content: Any, i: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text")
        key = "refusal" if kind == "refusal" else "text"
        if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(part.get(key), str):
            message = f"this model reads text only, not a content part of type {kind!r}"
            raise RequestError(message, f"messages[{i}].content")
        texts.append(part[key])
    return "\n".join(texts)


def _plain_call(call: Mapping[str, Any], i: int, j: int) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            param = f"messages[{i}].tool_calls[{j}].function.arguments"
            raise RequestError("tool-call arguments must be a JSON object in a string", param) from error
    function["arguments"] = arguments
    return {**call, "function": function}


def _cut_after_last(prompt: str, messages: list[dict[str, Any]]) -> str:
    final = messages[-1]["content"].strip() if messages else ""
    at = prompt.rfind(final) if final else -1
    if at < 0:
        raise RequestError("the chat template does not show the last message's text", "continue_final_message")
    return prompt[: at + len(final)]


# what a template can run into with messages it was not written for
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_WIDE_FIELD = re.compile(r"[%:{*.][^}%]*\d{6}")
_DEADLINE = "_deadline"


class _Deadline:
    """Called once in each round of each loop; ends a rendering that has run too long."""

    def __init__(self) -> None:
        self._at = time.monotonic() + MAX_RENDER_SECONDS

    def __call__(self) -> str:
        if time.monotonic() > self._at:
            raise RequestError(f"the chat template ran for more than {MAX_RENDER_SECONDS:g} s", "messages")
        return ""


class _Sandbox(ImmutableSandboxedEnvironment):
    """No attribute access beyond plain data, no unbounded products, no unbounded loops."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call(self, context: Any, callee: Any, *args: Any, **kwargs: Any) -> Any:
        pattern = getattr(callee, "__self__", None)  # of str.format
        too_wide = isinstance(pattern, str) and _WIDE_FIELD.search(pattern)
        if too_wide or any(isinstance(arg, int) and arg > MAX_RENDER_CHARS for arg in (*args, *kwargs.values())):
            raise RequestError("the chat template calls for too long a text", "messages")
        return super().call(context, callee, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for a, b in ((left, right), (right, left)):
            repeats = operator == "*" and isinstance(a, (str, bytes, list, tuple)) and isinstance(b, int)
            if repeats and len(a) * b > MAX_RENDER_CHARS:
                raise RequestError("the chat template repeats a text too often", "messages")
        if operator == "%" and isinstance(left, str) and _WIDE_FIELD.search(left):
            raise RequestError("the chat template formats too wide a field", "messages")
        if operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
            raise RequestError("the chat template raises to too high a power", "messages")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        nodes = jinja2.nodes
        bodies: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
        for loop in bodies:
            check = nodes.Call(nodes.Name(_DEADLINE, "load"), [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, nodes.Output([check], lineno=loop.lineno))
        tree.set_environment(self)
        return tree


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks answers for training; here it is only its contents."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is written in prompts: unlike Jinja's own filter, nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
