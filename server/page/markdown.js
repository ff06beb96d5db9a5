// Markdown to elements: the part of CommonMark and GitHub's tables that models write. Nothing is ever parsed as HTML,
// images are shown as links, and links lead to the web or to mail only. Time grows linearly with the text.

import { copyButton, element } from "./dom.js";

const MAX_DEPTH = 8;
const MAX_ADDRESS = 2000;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DIVIDER = /^[\s|:-]+$/;
const rendered = new WeakMap();

/** Shows `source` in `container`. What has not changed since the last time is left alone. */
export function renderMarkdown(container, source) {
  const old = rendered.get(container) ?? [];
  const chunks = split(source);
  let same = 0;
  while (same < old.length && old[same] === chunks[same]) same++;
  while (container.children.length > same) container.lastChild.remove();
  for (const chunk of chunks.slice(same)) {
    const block = element("div");
    renderBlocks(block, chunk.split("\n"), 0);
    container.append(block);
  }
  rendered.set(container, chunks);
}

/** Top-level parts of a text: ended by empty lines, but code and lists keep theirs. */
function split(source) {
  const chunks = [];
  let lines = [];
  let fence = null;
  let isOver = false;
  for (const line of source.replaceAll("\r\n", "\n").split("\n")) {
    if (fence) {
      lines.push(line);
      if (closes(line, fence)) fence = null;
      continue;
    }
    if (!line.trim()) {
      isOver = lines.length > 0;
      continue;
    }
    const goesOn = isOver && ITEM.test(lines[0]) && (/^ {2,}/.test(line) || ITEM.test(line));
    if (isOver && !goesOn) {
      chunks.push(lines.join("\n"));
      lines = [];
    } else if (goesOn) lines.push("");
    isOver = false;
    lines.push(line);
    fence = FENCE.exec(line)?.[1] ?? null;
  }
  if (lines.length) chunks.push(lines.join("\n"));
  return chunks;
}

const closes = (line, fence) => {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
};

function renderBlocks(parent, lines, depth) {
  let i = 0;
  const takeWhile = (test) => {
    const start = i;
    while (i < lines.length && test(lines[i], i)) i++;
    return lines.slice(start, i);
  };
  while (i < lines.length) {
    const line = lines[i];
    let match;
    if (!line.trim()) i++;
    else if ((match = FENCE.exec(line))) {
      i++;
      const code = takeWhile((text) => !closes(text, match[1]));
      i++;
      parent.append(codeBlock(code.join("\n"), match[2]));
    } else if ((match = HEADING.exec(line))) {
      // the page has a first heading of its own
      const heading = element(`h${Math.min(6, match[1].length + 1)}`);
      renderInline(heading, match[2].replace(/ #+ *$/, ""));
      parent.append(heading);
      i++;
    } else if (RULE.test(line)) {
      parent.append(element("hr"));
      i++;
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const quote = element("blockquote");
      renderBlocks(
        quote,
        takeWhile((text) => QUOTE.test(text)).map((text) => text.replace(QUOTE, "")),
        depth + 1,
      );
      parent.append(quote);
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      const first = i;
      const isOrdered = /\d/.test(ITEM.exec(line)[2]);
      parent.append(
        list(
          takeWhile((text, at) => at === first || !text.trim() || /^ {2,}/.test(text) || isItem(text, isOrdered)),
          isOrdered,
          depth,
        ),
      );
    } else if (line.includes("|") && isDivider(lines[i + 1] ?? "")) {
      parent.append(table(takeWhile((text) => text.includes("|"))));
    } else {
      const first = i;
      const text = takeWhile((next, at) => at === first || (next.trim() && !beginsBlock(next))).join("\n");
      const paragraph = element("p");
      renderInline(paragraph, text);
      parent.append(paragraph);
    }
  }
}

const isItem = (line, isOrdered) => {
  const match = ITEM.exec(line);
  return match !== null && !RULE.test(line) && /\d/.test(match[2]) === isOrdered;
};
const isDivider = (line) => DIVIDER.test(line) && line.includes("-") && line.includes("|");
const beginsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function list(lines, isOrdered, depth) {
  const made = element(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(ITEM.exec(lines[0])[2], 10) } : {});
  let item = [];
  let indent = 0;
  const flush = () => {
    if (!item.length) return;
    const entry = element("li");
    if (item.some((line) => beginsBlock(line) || !line.trim())) renderBlocks(entry, item, depth + 1);
    else renderInline(entry, item.join("\n"));
    made.append(entry);
  };
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && (!item.length || match[1].length < Math.max(indent, 1))) {
      flush();
      indent = match[0].length;
      item = [line.slice(indent)];
    } else item.push(line.replace(new RegExp(`^ {0,${indent}}`), ""));
  }
  while (item.length > 1 && !item.at(-1).trim()) item.pop();
  flush();
  return made;
}

function table(lines) {
  const rows = lines.map((line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split("|"),
  );
  const row = (tag, cells) => {
    const made = element("tr");
    for (const cell of cells) {
      const entry = element(tag);
      renderInline(entry, cell.trim());
      made.append(entry);
    }
    return made;
  };
  const body = element("tbody", {}, ...rows.slice(2).map((cells) => row("td", cells)));
  const made = element("table", {}, element("thead", {}, row("th", rows[0])), body);
  return element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Table" }, made);
}

function codeBlock(code, language) {
  const caption = element(
    "figcaption",
    {},
    element("span", {}, language || "text"),
    copyButton("Copy code", () => code),
  );
  const body = element("pre", { tabindex: "0" }, element("code", {}, code));
  return element("figure", { class: "code" }, caption, body);
}

/** Emphasis, code, links and line breaks of one paragraph. */
function renderInline(parent, text, depth = 0) {
  const find = finder(text);
  let plain = "";
  let i = 0;
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  const put = (node, end) => {
    flush();
    parent.append(node);
    i = end;
  };
  while (i < text.length) {
    const rest = /[\\`*_~[!\nh<]/g; // where something may begin; "h" of a bare address
    rest.lastIndex = i;
    const next = rest.exec(text)?.index ?? text.length;
    plain += text.slice(i, next);
    i = next;
    if (i >= text.length) break;
    const found = special(text, i, find, depth);
    if (!found) plain += text[i++];
    else if (typeof found.node === "string") {
      plain += found.node;
      i = found.end;
    } else put(found.node, found.end);
  }
  flush();
}

/** What begins at `i`, and where it ends; null if it is plain text. */
function special(text, i, find, depth) {
  const char = text[i];
  if (char === "\n") return { node: element("br"), end: i + 1 };
  if (char === "\\") return /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "") ? { node: text[i + 1], end: i + 2 } : null;
  if (char === "`") {
    const ticks = run(text, i, "`");
    const end = find(ticks, i + ticks.length);
    if (end < 0) return { node: ticks, end: i + ticks.length };
    return { node: element("code", {}, text.slice(i + ticks.length, end).trim()), end: end + ticks.length };
  }
  if (char === "h") return address(text, i, /[\s<>"'`|]/g);
  if (char === "<") return text.startsWith("http", i + 1) ? bracketed(text, i, find) : null;
  if (char === "!") return text[i + 1] === "[" ? link(text, i + 1, find, depth) : null;
  if (char === "[") return link(text, i, find, depth);
  return emphasis(text, i, find, depth);
}

const MARKS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

function emphasis(text, i, find, depth) {
  const mark = text[i] === text[i + 1] ? text.slice(i, i + 2) : text[i];
  const start = i + mark.length;
  const literal = { node: mark, end: start };
  if (!MARKS[mark] || depth >= MAX_DEPTH || /\s/.test(text[start] ?? " ")) return literal;
  if (mark[0] === "_" && /\w/.test(text[i - 1] ?? " ")) return literal;
  let end = find(mark, start + 1);
  if (end > 0 && mark === "**" && text[end + 2] === "*") end++; // of three, the inner one is another mark's
  if (end < 0 || /\s/.test(text[end - 1]) || (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? " ")))
    return literal;
  const made = element(MARKS[mark]);
  renderInline(made, text.slice(start, end), depth + 1);
  return { node: made, end: end + mark.length };
}

function link(text, i, find, depth) {
  const middle = find("](", i + 1);
  const end = middle < 0 ? -1 : find(")", middle);
  if (end < 0 || depth >= MAX_DEPTH) return null;
  const label = text.slice(i + 1, middle);
  const target = safeAddress(
    text
      .slice(middle + 2, end)
      .trim()
      .split(/\s/)[0],
  );
  if (!target || label.includes("\n\n") || label.includes("[")) return null;
  const made = anchor(target);
  renderInline(made, label || target, MAX_DEPTH);
  return { node: made, end: end + 1 };
}

function bracketed(text, i, find) {
  const end = find(">", i);
  const target = end < 0 ? null : safeAddress(text.slice(i + 1, end));
  return target && { node: anchor(target, text.slice(i + 1, end)), end: end + 1 };
}

function address(text, i, ends) {
  if (!/^https?:\/\//.test(text.slice(i, i + 8)) || /\w/.test(text[i - 1] ?? " ")) return null;
  ends.lastIndex = i;
  const end = Math.min(i + MAX_ADDRESS, ends.exec(text)?.index ?? text.length);
  const whole = text.slice(i, end).replace(/[.,:;!?)\]*_]+$/, "");
  const target = safeAddress(whole);
  return target && { node: anchor(target, whole), end: i + whole.length };
}

const anchor = (href, ...children) =>
  element("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);

/** The address if it leads to the web or to mail, else null. */
function safeAddress(target) {
  try {
    const { protocol, href } = new URL(target);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

function run(text, i, char) {
  let end = i;
  while (text[end] === char) end++;
  return text.slice(i, end);
}

/** `indexOf` that remembers: asked from growing places, it passes over each character once a mark. */
function finder(text) {
  const last = new Map();
  return (mark, from) => {
    const known = last.get(mark);
    if (known !== undefined && (known < 0 || known >= from)) return known;
    const found = text.indexOf(mark, from);
    last.set(mark, found);
    return found;
  };
}
