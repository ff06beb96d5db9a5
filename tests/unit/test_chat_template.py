"""What templates are given, and what they are kept from."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from tandem.errors import ConfigError, RequestError
from tandem.text import chat_template
from tandem.text.chat_template import ChatTemplate, load_chat_template, plain_messages

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: Any = HELLO, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **options)


def test_a_conversation_renders_with_and_without_a_generation_prompt() -> None:
    assert render(CHATML) == "<|user|>Hello<|end|>\n<|assistant|>"
    assert render(CHATML, add_generation_prompt=False) == "<|user|>Hello<|end|>\n"


def test_special_tokens_tools_documents_and_variables_reach_the_template() -> None:
    source = "{{ bos_token }}{{ tools | tojson }}{{ documents | tojson }}{{ style }}"
    tools, documents = [{"name": "é<>"}], [{"text": "d"}]
    text = render(source, tools=tools, documents=documents, variables={"style": "brief"})
    assert text == '<s>[{"name": "é<>"}][{"text": "d"}]brief'


def test_absent_tools_are_none() -> None:
    assert render("{{ tools is none }}") == "True"


def test_conventions_of_templates_on_the_hub_work() -> None:
    assert render("{% generation %}x{% endgeneration %}") == "x"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert len(render("{{ strftime_now('%Y') }}")) == 4


def test_a_template_may_refuse_and_says_why() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as refusal:
        render("{{ raise_exception('roles must alternate') }}")
    assert refusal.value.param == "messages"


def test_text_parts_are_joined_and_other_parts_are_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "user", "content": parts}])[0]["content"] == "a\nb"
    with pytest.raises(RequestError) as refusal:
        plain_messages([*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    assert refusal.value.param == "messages[1].content"


def test_tool_call_arguments_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    (plain,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert plain["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert plain["content"] == ""
    assert call["function"]["arguments"] == '{"x": 1}', "the caller's message was changed"
    call["function"]["arguments"] = "{x"
    with pytest.raises(RequestError, match="JSON object"):
        plain_messages([{"role": "assistant", "tool_calls": [call]}])


def test_the_last_message_can_be_continued() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|user|>Hello<|end|>\n<|assistant|>Once upon"
    with pytest.raises(RequestError, match="continue_final_message"):
        render(CHATML, messages, continue_final_message=True)


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_variables_cannot_replace_the_conversation(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        render(CHATML, variables={name: []})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x' | indent(10 ** 9) }}",
    ],
)
def test_a_hostile_template_is_cut_off_quickly(source: str) -> None:
    start = time.monotonic()
    text = ""
    with contextlib.suppress(RequestError):
        text = render(source)
    assert len(text) < 1000
    assert time.monotonic() - start < 7


def test_a_loop_without_output_is_cut_off_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDER_SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(RequestError, match="ran for more than"):
        render(loop)
    assert time.monotonic() - start < 2


def test_the_option_is_a_file_or_text(tmp_path: Any) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("from the file")
    for option, own, expected in [(str(file), "own", "from the file"), ("{{ 1 }}", "own", "1"), (None, "own", "own")]:
        template = load_chat_template(option, own, {})
        assert template is not None
        assert template.render(HELLO) == expected
    assert load_chat_template(None, None, {}) is None


@pytest.mark.parametrize("option", ["no/such/file", "{% for %}"])
def test_an_option_that_is_neither_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="--chat-template"):
        load_chat_template(option, None, {})
