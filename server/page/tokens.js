// An answer as the tokens that the model chose: their colour says how sure it was, a card what else it considered.

import { element } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // probabilities from which on a token has level 0, 1, 2, 3; less is 4
const WORDS = ["very sure", "sure", "unsure", "very unsure", "unlikely"];
const shown = new WeakMap();

/** Tokens that make whole characters together, and their text. */
export function groupTokens(tokens) {
  const groups = [];
  let decoder = null;
  for (const token of tokens) {
    if (!token.bytes) decoder = null;
    const isPart = decoder !== null;
    if (token.bytes) decoder ??= new TextDecoder();
    const text = token.bytes ? decoder.decode(Uint8Array.from(token.bytes), { stream: true }) : token.text;
    if (isPart) {
      groups.at(-1).text += text;
      groups.at(-1).tokens.push(token);
      if (text) decoder = null;
    } else groups.push({ text, tokens: [token] });
  }
  return groups;
}

/** Shows `tokens` in `container`; those that are there already stay. */
export function renderTokens(container, tokens) {
  const groups = groupTokens(tokens);
  const spans = shown.get(container) ?? [];
  if (!spans.length || spans.length > groups.length) {
    container.replaceChildren();
    spans.length = 0;
  }
  spans.pop()?.remove(); // the last one may have been half a character
  for (const group of groups.slice(spans.length)) {
    spans.push(tokenSpan(group, spans.length === 0));
    container.append(spans.at(-1));
  }
  shown.set(container, spans);
}

function tokenSpan({ text, tokens }, isFirst) {
  const probability = Math.min(...tokens.map((token) => Math.exp(token.logprob)));
  const found = LEVELS.findIndex((least) => probability >= least);
  const level = found < 0 ? LEVELS.length : found;
  const span = element("span", {
    class: tokens.some((token) => token.isHidden) ? "token hidden-token" : "token",
    role: "option",
    tabindex: isFirst ? "0" : "-1",
    "data-level": level,
    "aria-label": `${visible(text)}, ${percent(probability)}, ${WORDS[level]}`,
  });
  for (const [i, line] of (text || "�").split("\n").entries()) {
    if (i) span.append(element("span", { class: "return" }, "⏎"), "\n");
    span.append(line);
  }
  span.tokens = tokens;
  return span;
}

/** The card beside a token. One for the page; it listens to all that is in `root`. */
export function installTokenCard(root) {
  const card = element("div", { id: "token-card", role: "tooltip", hidden: true });
  document.body.append(card);
  let current = null;
  const show = (span) => {
    if (span === current) return;
    hide();
    current = span;
    span.setAttribute("aria-describedby", card.id);
    card.replaceChildren(...span.tokens.map(tokenTable));
    card.hidden = false;
    place(card, span);
  };
  const hide = () => {
    current?.removeAttribute("aria-describedby");
    current = null;
    card.hidden = true;
  };
  const tokenOf = (event) => event.target.closest?.(".token");
  root.addEventListener("pointerover", (event) => (tokenOf(event) ? show(tokenOf(event)) : hide()));
  root.addEventListener("pointerleave", hide);
  root.addEventListener("focusin", (event) => (tokenOf(event) ? show(tokenOf(event)) : hide()));
  root.addEventListener("focusout", hide);
  root.addEventListener("scroll", hide, true);
  root.addEventListener("keydown", (event) => {
    const span = tokenOf(event);
    if (!span) return;
    if (event.key === "Escape") hide();
    const others = { ArrowLeft: span.previousElementSibling, ArrowRight: span.nextElementSibling };
    const ends = { Home: span.parentElement.firstElementChild, End: span.parentElement.lastElementChild };
    const next = { ...others, ...ends }[event.key];
    if (!next) return;
    event.preventDefault();
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

function tokenTable({ text, logprob, top }) {
  const rows = top.some(([other]) => other === text) ? top : [[text, logprob], ...top];
  const table = element("table", {}, element("caption", {}, visible(text)));
  for (const [other, value] of rows) {
    const probability = Math.exp(value);
    const bar = element("span", { class: "bar" });
    bar.style.width = `${Math.max(1, probability * 100)}%`;
    const isChosen = other === text;
    const name = element(
      "th",
      { scope: "row" },
      visible(other),
      isChosen ? element("span", { class: "offscreen" }, " (chosen)") : null,
    );
    const cells = [name, element("td", { class: "track" }, bar), element("td", {}, percent(probability))];
    table.append(element("tr", { class: isChosen ? "chosen" : null }, ...cells));
  }
  return table;
}

/** Above the token, or below it where there is no room; always within the window. */
function place(card, span) {
  const token = span.getClientRects()[0];
  const { width, height } = card.getBoundingClientRect();
  const above = token.top - height - 8;
  card.style.left = `${Math.max(8, Math.min(token.left, innerWidth - width - 8))}px`;
  card.style.top = `${above >= 8 ? above : token.bottom + 8}px`;
}

const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(empty)";

const percent = (probability) =>
  probability >= 0.9995 ? "100 %" : probability < 0.0005 ? "< 0.1 %" : `${(probability * 100).toFixed(1)} %`;
