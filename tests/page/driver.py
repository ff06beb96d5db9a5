"""What a user does on the page, and what the user sees."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

CHAT = "**/v1/chat/completions"
# ends when somebody stops it, or seconds later
ENDLESS = {"other": '{"ignore_eos": true}', "max_tokens": "1500"}
# of every visible text: its colour's contrast with what is behind it (WCAG 2.2, 1.4.3)
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
      if (alpha > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!texts.length || node.closest(":disabled, .offscreen, noscript") || !node.checkVisibility()) continue;
    const [a, b] = [parse(getComputedStyle(node).color).slice(0, 3), behind(node)].map(luminance);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)]);
  }
  return found;
}"""


class ChatPage:
    """The page in a tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.prompt = page.get_by_label("Message", exact=True)
        self.answers = page.get_by_role("article", name="Answer")
        self.questions = page.get_by_role("article", name="You")

    def open(self, url: str) -> ChatPage:
        self.page.goto(url)
        expect(self.page.get_by_label("Model").locator("option")).not_to_have_count(0)
        return self

    def set(self, **fields: str) -> None:
        """Fill in settings, by the names of the API."""
        button = self.page.get_by_role("button", name="Settings", exact=True)
        button.click()
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        self.button("Close settings").click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def say(self, text: str) -> None:
        self.prompt.fill(text)
        self.prompt.press("Enter")

    def ask(self, text: str) -> Locator:
        """Say something, and wait for the end of the answer."""
        count = self.answers.count()
        self.say(text)
        expect(self.answers).to_have_count(count + 1)
        self.ended()
        return self.answers.nth(count)

    def ended(self) -> Locator:
        """The last answer, once it has ended."""
        expect(self.button("Send")).to_be_visible()
        last = self.answers.last
        expect(last).to_have_attribute("aria-busy", "false")
        return last

    def figure(self, name: str) -> str:
        return self.page.locator(f'[data-figure="{name}"]').inner_text()

    def figure_becomes(self, name: str, pattern: str) -> None:
        expect(self.page.locator(f'[data-figure="{name}"]')).to_have_text(re.compile(pattern))

    def answer_with(self, *chunks: Any, ends: bool = True) -> None:
        """From now on, the server's answers are these chunks."""
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * ends

        def fulfil(route: Route) -> None:
            route.fulfill(status=200, content_type="text/event-stream", body="".join(lines))

        self.page.route(CHAT, fulfil)

    def contrasts(self) -> Sequence[tuple[float, str]]:
        found: Sequence[tuple[float, str]] = self.page.evaluate(CONTRASTS)
        return found

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return width


def text_chunks(text: str, finish_reason: str = "stop") -> tuple[dict[str, Any], ...]:
    """The chunks of an answer."""
    choice = {"index": 0, "finish_reason": None}
    return (
        {"choices": [{**choice, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{**choice, "delta": {"content": text}}]},
        {"choices": [{**choice, "delta": {}, "finish_reason": finish_reason}]},
    )
