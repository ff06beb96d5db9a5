"""Answers that are no friends of the page, and servers that fail in the middle."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.page.driver import CHAT, ChatPage, text_chunks
from tests.server.process import ServerProcess

HOSTILE = """<img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script>
[click](javascript:window.hacked=1) [data](data:text/html,<script>window.hacked=1</script>) [JS](JaVaScRiPt:hacked=1)
<javascript:window.hacked=1> ![picture](https://example.com/track.png) <iframe srcdoc="<script>top.hacked=1</script>">

[good](https://example.com/good) https://example.com/bare "onmouseover="window.hacked=1

```html
<script>window.hacked = 1</script>
```
"""
CALL = {"index": 0, "id": '"><script>hacked=1</script>', "type": "function"}


def test_a_hostile_answer_is_text(chat: ChatPage, page: Page) -> None:
    first, _, last = text_chunks("")
    function = {"name": "<b onclick=hacked=1>f</b>", "arguments": "<img src=x onerror=hacked=1>"}
    token = {"token": "<img src=x onerror=hacked=1>", "logprob": -1.0, "bytes": None, "top_logprobs": []}
    delta = {"content": HOSTILE, "reasoning_content": HOSTILE, "tool_calls": [{**CALL, "function": function}]}
    middle = {"choices": [{"index": 0, "delta": delta, "logprobs": {"content": [token]}, "finish_reason": None}]}
    chat.answer_with(first, middle, last)
    answer = chat.ask("<img src=x onerror=hacked=1>")
    for summary in answer.locator("summary").all():
        summary.click()
    expect(answer.locator(".answer")).to_contain_text('<img src=x onerror="window.hacked = 1">')
    links = answer.locator(".answer a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.com/track.png", "https://example.com/good", "https://example.com/bare",
    ]  # fmt: skip
    assert all("noopener" in link.get_attribute("rel") for link in links.all())
    expect(answer.locator("img, script, iframe, b")).to_have_count(0)
    expect(chat.questions.locator("img")).to_have_count(0)
    chat.button("Token probabilities").click()
    expect(answer.get_by_role("option")).to_have_text("<img src=x onerror=hacked=1>")
    page.reload()
    expect(chat.answers).to_have_count(1)
    assert page.evaluate("window.hacked") is None


def test_even_a_mistake_of_ours_could_not_run_an_answer(context: BrowserContext, server: ServerProcess) -> None:
    """The browser itself refuses to make markup of text, or to run a script that is not a file of ours."""
    page = context.new_page()
    page.goto(server.url)
    refused = page.evaluate("""() => {
      try { document.body.innerHTML = "<img src=x onerror=hacked=1>"; } catch (error) { return error.name; }
    }""")
    assert refused == "TypeError"


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            [{"error": {"message": "the engine died", "type": "server_error", "code": "engine_dead"}}],
            "the engine died",
        ),
        ([], "The connection ended before the answer did."),
    ],
    ids=["error", "cut"],
)
def test_an_error_in_the_middle_keeps_what_has_come_and_can_be_retried(
    chat: ChatPage, page: Page, ending: list[Any], said: str
) -> None:
    chat.answer_with(*text_chunks("half of an")[:2], *ending, ends=False)
    answer = chat.ask("What is 17 plus 25?")
    expect(answer).to_contain_text("half of an")
    expect(answer.get_by_role("alert")).to_contain_text(said)
    page.unroute(CHAT)
    answer.get_by_role("button", name="Retry").click()
    expect(chat.answers).to_have_count(1)
    expect(chat.ended()).to_contain_text("42")
    expect(chat.answers.get_by_role("alert")).to_be_hidden()


def test_a_refusal_names_the_field_and_a_server_that_is_gone_is_said_to_be(chat: ChatPage, page: Page) -> None:
    chat.set(other='{"logit_bias": {"1": 200}}')
    answer = chat.ask("Hello")
    expect(answer.get_by_role("alert")).to_contain_text("field logit_bias")
    expect(answer.get_by_role("alert")).to_contain_text("status 400")
    page.context.set_offline(True)
    answer = chat.ask("Hello?")
    expect(answer.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.locator("#strip")).to_have_attribute("data-state", "down")
    page.context.set_offline(False)
    expect(page.locator("#strip")).to_have_attribute("data-state", "up")
