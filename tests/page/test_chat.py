"""What users do on the page, with a real server behind it."""

from __future__ import annotations

import json
import re

import httpx
from playwright.sync_api import Page, expect

from tests.page.driver import CHAT, ENDLESS, ChatPage, text_chunks
from tests.server.process import ServerProcess, eventually

WEATHER = {"name": "get_weather", "description": "Get the weather in a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
}}  # fmt: skip


def test_answers_are_streamed_stopped_and_made_again_while_the_figures_move(
    chat: ChatPage, server: ServerProcess
) -> None:
    chat.set(temperature="0")
    answer = chat.ask("What is 17 plus 25?")
    expect(answer).to_contain_text("42")
    expect(answer.locator(".usage")).to_have_text(
        re.compile(r"\d+ tokens · \d+ tok/s · first token .+ in all · prompt \d+")
    )
    chat.figure_becomes("first-token", r"^[\d.]+ m?s$")
    chat.figure_becomes("per-token", r"^[\d.]+ m?s$")

    chat.set(**ENDLESS)
    chat.say("Tell me about Tandem.")
    chat.figure_becomes("running", "^1$")
    chat.figure_becomes("throughput", r"^[1-9]")
    chat.figure_becomes("cache", r"^(?!0\.0)\d")
    length = len(chat.answers.last.inner_text())
    eventually(lambda: len(chat.answers.last.inner_text()) > length)
    chat.button("Stop").click()
    expect(chat.ended()).to_contain_text("stopped")
    expect(chat.prompt).to_be_focused()
    eventually(server.is_idle)  # the server has stopped, too
    chat.figure_becomes("running", "^0$")

    chat.set(other="", max_tokens="")
    chat.answers.last.get_by_role("button", name="Regenerate").click()
    expect(chat.ended()).to_contain_text("server")
    expect(chat.ended()).not_to_contain_text("stopped")
    expect(chat.answers).to_have_count(2)


def test_a_token_shows_how_sure_the_model_was_and_what_else_it_considered(chat: ChatPage, page: Page) -> None:
    chat.set(temperature="2", seed="7", max_tokens="60")
    answer = chat.ask("Tell me about Tandem.")
    chat.button("Token probabilities").click()
    tokens = answer.get_by_role("option")
    count = int(re.search(r"(\d+) tokens", answer.locator(".usage").inner_text())[1])
    expect(tokens).to_have_count(count)

    card = page.get_by_role("tooltip")
    unsure = answer.locator(".token:not([data-level='0'])").first
    unsure.hover()
    expect(card).to_be_visible()
    assert card.locator("tr").count() >= 5  # one more where none of the likeliest was chosen
    shares = [float(text.strip("<% ")) for text in card.locator("td:last-child").all_inner_texts()]
    assert shares[1:] == sorted(shares[1:], reverse=True) and 0 < sum(shares) < 101
    share = float(card.locator(".chosen td:last-child").inner_text().strip("<% "))
    level = int(unsure.get_attribute("data-level"))
    assert [100, 90, 60, 30, 10][level] > share or level == 0
    assert unsure.get_attribute("aria-label").split(", ")[-2].strip("<% ") == f"{share}"
    assert unsure.evaluate("node => getComputedStyle(node).backgroundColor") != "rgba(0, 0, 0, 0)"

    page.mouse.move(0, 0)
    expect(card).to_be_hidden()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(card).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    chat.button("Token probabilities").click()
    expect(tokens.first).to_be_hidden()


def test_reasoning_is_folded(chat: ChatPage) -> None:
    chat.set(reasoning_effort="low", temperature="0")
    answer = chat.ask("What is 17 plus 25?")
    expect(answer.locator(".answer")).to_contain_text("42")
    thoughts = answer.locator("details").filter(has_text="Reasoning")
    expect(thoughts.locator(".prose")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator(".prose")).to_contain_text("37")
    expect(answer.locator(".usage")).to_contain_text("of reasoning")


def test_a_tool_call_is_answered_by_the_user(chat: ChatPage, page: Page) -> None:
    chat.set(tools=json.dumps([WEATHER]), temperature="0")
    answer = chat.ask("What is the weather in Oslo?")
    call = answer.locator("details.call")
    expect(call).not_to_have_attribute("open", "")
    expect(call.locator("summary")).to_contain_text("get_weather")
    call.locator("summary").click()
    expect(call.locator("pre")).to_have_text(re.compile('"city": "Oslo"'))
    answer.get_by_label("Result of get_weather").fill('{"temperature": 4, "sky": "cloudy"}')
    with page.expect_request(CHAT) as request:
        answer.get_by_role("button", name="Send result").click()
    roles = [message["role"] for message in request.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "tool"]
    expect(chat.answers).to_have_count(2)
    expect(chat.ended()).to_contain_text("cloudy")
    expect(call.locator("pre").last).to_contain_text("cloudy")
    expect(answer.get_by_label("Result of get_weather")).to_have_count(0)


def test_a_form_and_other_fields_are_sent_and_what_is_no_json_is_not(chat: ChatPage, page: Page) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
    chat.set(
        response_format=json.dumps(schema), other='{"repetition_penalty": 1.1}', stop="END\nOVER", max_tokens="40"
    )
    with page.expect_request(CHAT) as request:
        answer = chat.ask("Give me a city as JSON.")
    body = request.value.post_data_json
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert (body["repetition_penalty"], body["stop"], body["max_tokens"]) == (1.1, ["END", "OVER"], 40)
    assert set(json.loads(answer.locator(".answer").inner_text())) == {"city"}

    chat.set(tools="[{")
    chat.say("Hello")
    expect(page.locator("[name=tools]")).to_be_focused()
    expect(page.locator("#e-tools")).to_contain_text("not JSON")
    expect(chat.answers).to_have_count(1)
    expect(chat.prompt).to_have_value("Hello")  # nothing is lost


def test_the_request_as_curl_is_the_request(chat: ChatPage, server: ServerProcess, page: Page) -> None:
    chat.set(system="It's short.", temperature="0")
    with page.expect_request(CHAT) as request:
        answer = chat.ask("What's 'up'?")
    answer.get_by_role("button", name="Show the request as curl").click()
    command = page.locator("#request-text").inner_text()
    assert command.startswith(f"curl --no-buffer '{server.url}/v1/chat/completions'")
    body = re.search(r"-d '(.*)'$", command, re.DOTALL)[1].replace("'\\''", "'")
    assert json.loads(body) == request.value.post_data_json
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=json.loads(body))
    assert answer.status_code == 200


def test_a_conversation_is_kept_edited_and_taken_back(chat: ChatPage, page: Page) -> None:
    chat.set(temperature="0")
    chat.ask("My name is Ada. What is my name?")
    chat.ask("What is 2 plus 3?")
    page.reload()
    expect(chat.answers).to_have_count(2)
    expect(chat.answers.first).to_contain_text("Ada")
    assert page.locator("[name=temperature]").input_value() == "0"

    chat.questions.first.hover()
    chat.questions.first.get_by_role("button", name=re.compile("^Edit")).click()
    field = chat.questions.first.get_by_label("Your message")
    field.fill("My name is Bob. What is my name?")
    field.press("Enter")
    expect(chat.answers).to_have_count(1)
    expect(chat.ended()).to_contain_text("Bob")
    chat.button("Undo").click()
    expect(chat.answers).to_have_count(2)
    expect(chat.answers.first).to_contain_text("Ada")

    chat.answers.last.get_by_role("button", name="Delete answer").click()
    expect(chat.answers).to_have_count(1)
    chat.button("New chat").click()
    expect(chat.answers).to_have_count(0)
    chat.button("Undo").click()
    expect(chat.answers).to_have_count(1)
    chat.button("New chat").click()
    page.reload()
    expect(page.get_by_role("heading", name="Chat with tandem-demo")).to_be_visible()


def test_what_the_browser_keeps_is_bounded(chat: ChatPage, page: Page) -> None:
    chat.answer_with(*text_chunks("word " * 150_000))
    for _ in range(4):
        chat.ask("Go on.")
    expect(page.locator("#cut-note")).to_be_visible()
    assert page.evaluate("Object.values(localStorage).join('').length") < 2_100_000
    page.reload()
    assert 1 <= chat.answers.count() < 4


def test_a_server_with_a_key_below_a_prefix_without_metrics(page: Page, guarded: ServerProcess) -> None:
    page.goto(guarded.url + "/tandem/")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    for key in ("wrong", "the-key"):
        expect(dialog).to_be_visible()
        dialog.get_by_label("API key").fill(key)
        dialog.get_by_label("API key").press("Enter")
        if key == "wrong":
            expect(dialog.get_by_role("alert")).to_contain_text("refuses")
    expect(dialog).to_be_hidden()
    chat = ChatPage(page)
    expect(page.get_by_label("Model").locator("option")).to_have_text(["first", "second"])
    page.get_by_label("Model").select_option("second")
    chat.set(temperature="0")
    expect(page.locator("#strip .note")).to_contain_text("/metrics is off here, or on a port of its own")
    with page.expect_request(CHAT) as request:
        chat.say("My name is Ada. What is my name?")
    assert request.value.url.startswith(guarded.url + "/tandem/v1/")
    assert request.value.post_data_json["model"] == "second"
    # this server gives fewer alternatives than the page asks for: it goes on without
    expect(page.locator("#toast")).to_contain_text("without")
    expect(chat.answers).to_have_count(1)
    expect(chat.ended().locator(".answer")).to_contain_text("Ada")
    chat.figure_becomes("running", "^0$")
    assert "the-key" not in page.url
    assert "the-key" not in page.evaluate("JSON.stringify(localStorage)")
    chat.answers.last.get_by_role("button", name="Show the request as curl").click()
    expect(page.locator("#request-text")).to_contain_text("$TANDEM_API_KEY")
    page.reload()  # in the same tab, the key is still there
    expect(page.get_by_label("Model").locator("option")).to_have_count(2)
    expect(dialog).to_be_hidden()
