// Building elements. Text only ever becomes text nodes: nothing here parses markup.

/** An element with attributes (`on…` are listeners; false, null and undefined are left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** One of the symbols in index.html. */
export function icon(symbol) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${symbol}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon alone; its label is read out, and shown by a pointer that rests on it. */
export function iconButton(symbol, label, onclick) {
  return element(
    "button",
    { type: "button", class: "quiet", "aria-label": label, title: label, onclick },
    icon(symbol),
  );
}

/** A button that copies what `text()` returns, and says so for a moment. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "close"));
    button.setAttribute("aria-label", done ? "Copied" : "Copying failed");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/** Where the clipboard's API is missing: over plain HTTP from another machine. */
function copyBySelection(text) {
  const active = document.activeElement;
  const field = element("textarea", { class: "offscreen", readonly: true });
  field.value = text;
  (active?.closest("dialog") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  active?.focus();
  return done;
}
