"""The official clients against the server: what they accept, users can use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from ..capabilities import COLOUR, NAMED, TOOL_TOKENS, WEATHER, anthropic_tool, flat
from ..client import Api, content_of
from ..requirement import ANTHROPIC, group, must, needs, not_able, not_offered, should

pytestmark = group("sdks")
PYTHON = "libraries"
MESSAGES: Any = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def sdk(api: Api) -> Iterator[openai.OpenAI]:
    """OpenAI's client for Python; it does not try again, so that faults are seen."""
    key = api.client.key or "none"
    with openai.OpenAI(base_url=api.client.api, api_key=key, max_retries=0, timeout=api.client.timeout) as made:
        yield made


@pytest.fixture
def claude(api: Api) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client for Python, whose base is without /v1."""
    key = api.client.key or "none"
    with anthropic.Anthropic(base_url=api.client.root, api_key=key, max_retries=0) as made:
        yield made


@must("openai-python lists models, and retrieves one", PYTHON)
@needs("models")
def test_models(sdk: openai.OpenAI) -> None:
    """By the id that the list gives, with a slash or without."""
    first = sdk.models.list().data[0]
    found = sdk.models.retrieve(first.id)
    assert found.id == first.id, f"expected {first.id}, got {found.id}"


@must("openai-python reads a chat", PYTHON)
@needs("chat")
def test_chat(sdk: openai.OpenAI, api: Api) -> None:
    """With the text that the raw answer has."""
    found = sdk.chat.completions.create(model=api.model, messages=MESSAGES, max_tokens=8, temperature=0)
    raw = content_of(api.chat().ok())
    assert found.choices[0].message.content == raw, f"expected {raw!r}, got {found.choices[0].message.content!r}"


@must("openai-python reads a stream of chat", PYTHON)
@needs("chat", "streaming")
def test_chat_stream(sdk: openai.OpenAI, api: Api) -> None:
    """The whole answer's text, and the usage that was asked for."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    chunks = list(sdk.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    whole = content_of(api.chat().ok())
    assert text == whole, f"expected {whole!r}, got {text!r}"
    assert chunks[-1].usage is not None, "expected usage in the last chunk"


@must("openai-python's stream helper puts a stream together", PYTHON)
@needs("chat", "streaming")
def test_stream_helper(sdk: openai.OpenAI, api: Api) -> None:
    """Its events, and the message that it makes of them; it takes no answer that is cut off."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": 64, "temperature": 0}
    try:
        with sdk.chat.completions.stream(**fields) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion().choices[0].message.content
    except openai.LengthFinishReasonError:
        not_able("its answer is longer than the limit")
    assert final == text, f"expected {text!r}, got {final!r}"


@should("openai-python raises the right exception for each error", PYTHON)
@needs("chat")
@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"temperature": 9}, openai.BadRequestError), ({"model": "no-such-model"}, openai.NotFoundError)],
    ids=["400", "404"],
)
def test_errors(sdk: openai.OpenAI, api: Api, fields: Any, kind: type[openai.APIStatusError]) -> None:
    """With the message of the server in it."""
    with pytest.raises(kind) as caught:
        sdk.chat.completions.create(**{"model": api.model, "messages": MESSAGES, "max_tokens": 1} | fields)
    assert isinstance(caught.value.body, dict) and caught.value.body.get("message"), f"got {caught.value.body}"


@must("openai-python raises AuthenticationError for a wrong key", PYTHON)
@needs("keys")
def test_key(api: Api) -> None:
    """401."""
    with (
        openai.OpenAI(base_url=api.client.api, api_key="wrong", max_retries=0) as made,
        pytest.raises(openai.AuthenticationError),
    ):
        made.models.list()


@must("openai-python reads completions, whole and streamed", PYTHON)
@needs("completions")
def test_completions(sdk: openai.OpenAI, api: Api) -> None:
    """The same text."""
    fields: Any = {"model": api.model, "prompt": "Hello, my", "max_tokens": 8, "temperature": 0}
    whole = sdk.completions.create(**fields).choices[0].text
    streamed = "".join(c.text for chunk in sdk.completions.create(**fields, stream=True) for c in chunk.choices)
    assert streamed == whole, f"expected {whole!r}, got {streamed!r}"


@must("openai-python reads tool calls, whole and streamed", PYTHON)
@needs("tools", "streaming")
def test_tools(sdk: openai.OpenAI, api: Api) -> None:
    """Its stream helper parses the arguments while they come."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": TOOL_TOKENS, "temperature": 0}
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    fields |= {"tools": [strict], "tool_choice": NAMED}
    whole: Any = (sdk.chat.completions.create(**fields).choices[0].message.tool_calls or [None])[0]
    with sdk.chat.completions.stream(**fields) as stream:
        calls: Any = stream.get_final_completion().choices[0].message.tool_calls
    final = (calls or [None])[0]
    assert whole is not None and final is not None, "expected a tool call"
    one, other = json.loads(whole.function.arguments), json.loads(final.function.arguments)
    assert one == other, f"expected {one}, got {other}"


@must("openai-python parses structured output", PYTHON)
@needs("structured")
def test_structured(sdk: openai.OpenAI, api: Api) -> None:
    """With the schema as the client sends it."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": 48, "response_format": COLOUR}
    choice = sdk.chat.completions.create(**fields).choices[0]
    if choice.finish_reason == "length":
        not_able("its answer is longer than the limit")
    assert json.loads(choice.message.content or "")["colour"] in ("red", "green"), f"got {choice.message.content!r}"


@must("openai-python reads embeddings, which it asks for in base64", PYTHON)
@needs("embeddings")
def test_embeddings(sdk: openai.OpenAI, api: Api) -> None:
    """And turns into floats."""
    found = sdk.embeddings.create(model=api.model, input=["a", "b"])
    assert len(found.data) == 2 and isinstance(found.data[0].embedding[0], float), "expected two lists of floats"


@must("openai-python reads responses, whole and streamed", PYTHON)
@needs("responses")
def test_responses(sdk: openai.OpenAI, api: Api) -> None:
    """The same text; its stream helper puts the response together."""
    fields: Any = {"model": api.model, "input": "Say hello.", "max_output_tokens": 16, "temperature": 0}
    whole = sdk.responses.create(**fields).output_text
    text = "".join(
        event.delta
        for event in sdk.responses.create(**fields, stream=True)
        if event.type == "response.output_text.delta"
    )
    assert text == whole, f"expected {whole!r}, got {text!r}"


@must("openai-python reads function calls of responses", PYTHON)
@needs("response_tools")
def test_response_tools(sdk: openai.OpenAI, api: Api) -> None:
    """As items of the output."""
    fields: Any = {"tools": [flat(WEATHER)], "tool_choice": "required", "max_output_tokens": TOOL_TOKENS}
    found = sdk.responses.create(model=api.model, input="Say hello.", **fields)
    assert any(item.type == "function_call" for item in found.output), f"expected a call, got {found.output}"


@must("anthropic-python reads messages, whole and streamed", ANTHROPIC + "api/client-sdks")
@needs("messages")
def test_messages(claude: anthropic.Anthropic, api: Api) -> None:
    """The same text; its stream helper puts the message together."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": 8, "extra_body": {"temperature": 0}}
    whole = "".join(block.text for block in claude.messages.create(**fields).content if block.type == "text")
    with claude.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole, f"expected {whole!r}, got {text!r}"
    assert final.stop_reason, "expected a stop_reason in the final message"


@must("anthropic-python reads tool uses", ANTHROPIC + "api/client-sdks")
@needs("message_tools")
def test_message_tools(claude: anthropic.Anthropic, api: Api) -> None:
    """Streamed: it parses the input while it comes."""
    fields: Any = {"model": api.model, "messages": MESSAGES, "max_tokens": TOOL_TOKENS}
    fields |= {"tools": [anthropic_tool(WEATHER)], "tool_choice": {"type": "any"}}
    with claude.messages.stream(**fields) as stream:
        final = stream.get_final_message()
    uses = [block for block in final.content if block.type == "tool_use"]
    assert uses and uses[0].input, f"expected a tool use with input, got {final.content}"


@must("anthropic-python raises BadRequestError for a bad request", ANTHROPIC + "api/errors")
@needs("messages")
def test_message_errors(claude: anthropic.Anthropic, api: Api) -> None:
    """400."""
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=api.model, messages=[], max_tokens=1)


_SCRIPT = """
const OpenAI = require("openai").default ?? require("openai");
const client = new OpenAI({ baseURL: process.env.BASE, apiKey: process.env.KEY, maxRetries: 0 });
const fields = { model: process.env.MODEL, max_tokens: 8, temperature: 0,
  messages: [{ role: "user", content: "Say hello." }] };
(async () => {
  const whole = await client.chat.completions.create(fields);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...fields, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  console.log(JSON.stringify({ whole: whole.choices[0].message.content, text }));
})().catch((error) => { console.error(String(error)); process.exit(1); });
"""


@should("openai-node reads a chat, whole and streamed", PYTHON)
@needs("chat", "streaming")
def test_node(api: Api) -> None:
    """Where ``node`` is there and finds the package ``openai`` (NODE_PATH says where)."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", 'require("openai")'], capture_output=True).returncode:
        not_offered("on this machine there is no node with the package openai")
    environment = {**os.environ, "BASE": api.client.api, "KEY": api.client.key or "none", "MODEL": api.model}
    done = subprocess.run([node, "-e", _SCRIPT], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, f"expected it to work, got {done.stderr[:300]}"
    found = json.loads(done.stdout)
    assert found["text"] == found["whole"], f"expected {found['whole']!r}, got {found['text']!r}"
