// The conversation as elements. One view a message; what has not changed is left alone, so that focus and folds stay.

import { tokensPerSecond } from "./answer.js";
import { copyButton, element, icon, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { renderTokens } from "./tokens.js";

const ENDS = {
  stop: "",
  length: "cut off: max tokens or the context is reached",
  tool_calls: "",
  stopped: "stopped",
  content_filter: "filtered",
};

/** Shows a chat in `root`. `actions` are what the buttons of a message do, see main.js. */
export class ConversationView {
  showsTokens = false;
  #root;
  #chat;
  #actions;
  #views = new Map();

  constructor(root, chat, actions) {
    this.#root = root;
    this.#chat = chat;
    this.#actions = actions;
  }

  /** Shows all messages as they are now. */
  update() {
    const { messages } = this.#chat;
    for (const [message, view] of this.#views) {
      if (messages.includes(message)) continue;
      view.element.remove();
      this.#views.delete(message);
    }
    for (const [i, message] of messages.entries()) {
      if (!this.#views.has(message)) this.#views.set(message, this.#make(message));
      const { element } = this.#views.get(message);
      if (this.#root.children[i] !== element) this.#root.insertBefore(element, this.#root.children[i] ?? null);
      this.updateMessage(message);
    }
  }

  /** Shows one message as it is now. */
  updateMessage(message) {
    const isLast = message === this.#chat.messages.at(-1);
    this.#views
      .get(message)
      ?.update({ isAnswering: isLast && this.#chat.isAnswering, isLast, showsTokens: this.showsTokens });
  }

  #make(message) {
    return message.role === "user" ? userView(message, this.#actions) : new AnswerView(message, this.#actions);
  }
}

function userView(message, actions) {
  const body = element("div", { class: "bubble" }, message.content);
  const edit = () => {
    const field = element("textarea", {
      "aria-label": "Your message",
      rows: Math.min(12, message.content.split("\n").length + 1),
    });
    field.value = message.content;
    const leave = () => {
      form.replaceWith(body);
      row.hidden = false;
    };
    const send = (event) => {
      event.preventDefault();
      if (field.value.trim()) actions.edit(message, field.value.trim());
    };
    const cancel = element("button", { type: "button", class: "plain", onclick: leave }, "Cancel");
    const form = element(
      "form",
      { class: "editor", onsubmit: send },
      field,
      element("div", { class: "row" }, cancel, element("button", { class: "primary" }, "Send again")),
    );
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    });
    body.replaceWith(form);
    row.hidden = true;
    field.focus();
  };
  const row = element(
    "div",
    { class: "actions" },
    copyButton("Copy message", () => message.content),
    iconButton("edit", "Edit message and continue from here", edit),
    iconButton("delete", "Delete message", () => actions.remove(message)),
  );
  return { element: element("article", { class: "user", "aria-label": "You" }, body, row), update() {} };
}

class AnswerView {
  #answer;
  #actions;
  #reasoning = element("div", { class: "prose" });
  #thoughts = fold("Reasoning", this.#reasoning);
  #prose = element("div", { class: "prose answer" });
  #tokens = element("div", {
    class: "tokens",
    role: "listbox",
    "aria-label": "Tokens with their probabilities; arrow keys move",
  });
  #calls = element("div", { class: "calls" });
  #error = element("div", { class: "error", role: "alert" });
  #usage = element("p", { class: "usage" });
  #row;
  #numCalls = -1;

  constructor(answer, actions) {
    this.#answer = answer;
    this.#actions = actions;
    this.#row = element(
      "div",
      { class: "actions" },
      copyButton("Copy answer", () => answer.content),
      iconButton("again", "Regenerate", () => actions.regenerate(answer)),
      iconButton("code", "Show the request as curl", () => actions.showRequest(answer)),
      iconButton("delete", "Delete answer", () => actions.remove(answer)),
      this.#usage,
    );
    const parts = [this.#thoughts, this.#tokens, this.#prose, this.#calls, this.#error, this.#row];
    this.element = element("article", { class: "assistant", "aria-label": "Answer" }, ...parts);
  }

  update({ isAnswering, isLast, showsTokens }) {
    const answer = this.#answer;
    const asTokens = showsTokens && answer.tokens.length > 0;
    this.element.setAttribute("aria-busy", isAnswering);
    this.#thoughts.hidden = asTokens || !answer.reasoning;
    this.#thoughts.querySelector("summary").lastChild.textContent =
      isAnswering && !answer.content && !answer.calls.length ? "Reasoning …" : "Reasoning";
    renderMarkdown(this.#reasoning, answer.reasoning);
    this.#prose.hidden = asTokens || (!answer.content && !isAnswering);
    this.#tokens.hidden = !asTokens;
    if (asTokens) renderTokens(this.#tokens, answer.tokens);
    else renderMarkdown(this.#prose, answer.content);
    this.#showCalls(isAnswering, isLast);
    this.#showError();
    const shown = figures(answer, isAnswering).map((figure) => element("span", {}, figure));
    this.#usage.replaceChildren(...shown.flatMap((figure, i) => (i ? [" · ", figure] : [figure])));
    this.#row.hidden = isAnswering && !answer.first;
  }

  /** Calls change until the answer ends; then only their results do, in fields that must stay as they are. */
  #showCalls(isAnswering, isLast) {
    const { calls } = this.#answer;
    const state = isAnswering ? -1 : calls.filter((call) => call.result !== null).length + (isLast ? 0.5 : 0);
    if (!isAnswering && state === this.#numCalls) return;
    this.#numCalls = state;
    const open = [...this.#calls.querySelectorAll("details")].map((details) => details.open);
    const folds = calls.map((call, i) => callFold(call, open[i]));
    const pending = isAnswering || !isLast ? [] : calls.filter((call) => call.result === null);
    this.#calls.replaceChildren(...folds, ...(pending.length ? [this.#resultForm(pending)] : []));
  }

  #resultForm(pending) {
    const fields = pending.map((call, i) =>
      element("textarea", {
        id: `result-${call.id}-${i}`,
        rows: 2,
        required: true,
        placeholder: '{"temperature": 21}',
      }),
    );
    const submit = (event) => {
      event.preventDefault();
      if (!this.#actions.canSend()) return;
      pending.forEach((call, i) => (call.result = fields[i].value));
      this.#actions.answer();
    };
    const labelled = fields.map((field, i) =>
      element(
        "div",
        { class: "field" },
        element("label", { for: field.id }, "Result of ", element("code", {}, pending[i].name)),
        field,
      ),
    );
    const send = element("button", { class: "primary" }, pending.length > 1 ? "Send results" : "Send result");
    return element(
      "form",
      { class: "results", onsubmit: submit },
      ...labelled,
      element("div", { class: "row" }, send),
    );
  }

  #showError() {
    const { error } = this.#answer;
    this.#error.hidden = !error;
    if (!error || this.#error.childElementCount) return;
    const details = [
      error.status && `status ${error.status}`,
      error.code,
      error.param && `field ${error.param}`,
    ].filter(Boolean);
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    const retry = element(
      "button",
      { type: "button", class: "plain", onclick: () => this.#actions.retry(this.#answer) },
      "Retry",
    );
    const said = element(
      "p",
      {},
      element("strong", {}, error.message),
      wait,
      " ",
      element("span", { class: "muted" }, details.join(" · ")),
    );
    this.#error.append(said, retry);
  }
}

function fold(title, ...content) {
  return element(
    "details",
    { class: "fold" },
    element("summary", {}, icon("chevron"), element("span", {}, title)),
    ...content,
  );
}

function callFold(call, isOpen) {
  const title = element("span", {}, call.result === null ? "Call of " : "Called ", element("code", {}, call.name));
  const summary = element(
    "summary",
    {},
    icon("chevron"),
    title,
    element("span", { class: "muted excerpt" }, call.arguments),
  );
  const made = element(
    "details",
    { class: "fold call", open: isOpen },
    summary,
    element("h3", {}, "Arguments"),
    element("pre", { tabindex: "0" }, pretty(call.arguments)),
  );
  if (call.result !== null)
    made.append(element("h3", {}, "Result"), element("pre", { tabindex: "0" }, pretty(call.result)));
  return made;
}

/** JSON with line breaks; other text as it is. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** What an answer took. */
function figures(answer, isAnswering) {
  const { usage, begun, first, ended, finish } = answer;
  const speed = tokensPerSecond(answer);
  return [
    ENDS[finish] ?? finish ?? "",
    usage && `${usage.completion} tokens`,
    usage?.reasoning && `${usage.reasoning} of reasoning`,
    speed && `${speed.toFixed(0)} tok/s`,
    first && `first token ${seconds(first - begun)}`,
    !isAnswering && ended && `${seconds(ended - begun)} in all`,
    usage && `prompt ${usage.prompt}${usage.cached ? ` (${usage.cached} cached)` : ""}`,
  ].filter(Boolean);
}

const seconds = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
