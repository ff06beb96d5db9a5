// The page: puts its parts together, and listens to what the user does.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { copyButton, element } from "./dom.js";
import { asCurl } from "./request.js";
import { Settings } from "./settings.js";
import { load, save } from "./storage.js";
import { Strip } from "./strip.js";
import { installTokenCard } from "./tokens.js";
import { ConversationView } from "./view.js";

const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", description: "name of the city" } },
      required: ["city"],
    },
  },
};
const THEMES = ["system", "light", "dark"];
const $ = (id) => document.getElementById(id);

const api = new Api();
const settings = new Settings($("settings-form"), showControls);
const chat = new Chat(api, () => ({ model: $("model").value, settings: settings.values }));
const view = new ConversationView($("log"), chat, {
  edit: (message, text) => canSend() && undoable("Message edited", () => follow(chat.edit(message, text))),
  regenerate: (answer) => canSend() && undoable("Answer replaced", () => follow(chat.regenerate(answer))),
  retry: (answer) => canSend() && follow(chat.regenerate(answer)),
  remove: (message) => undoable("Message deleted", () => chat.remove(message)),
  showRequest,
  answer: () => canSend() && follow(chat.answer()),
  canSend,
});
const strip = new Strip($("strip"), api, { isAnswering: () => chat.isAnswering, onready: loadModels });

// ---------------------------------------------------------------- the conversation

let isFramePending = false;
chat.addEventListener("change", showAll);
chat.addEventListener("answer", () => {
  if (isFramePending) return;
  isFramePending = true;
  requestAnimationFrame(() => {
    isFramePending = false;
    keepingEnd(() => chat.messages.length && view.updateMessage(chat.messages.at(-1)));
  });
});
chat.addEventListener("end", ({ detail: answer }) => {
  showAll();
  if (answer.error?.status === 401) askForKey(() => follow(chat.regenerate(answer)));
  else if (answer.request.logprobs && ["logprobs", "top_logprobs"].includes(answer.error?.param)) {
    settings.set("recordsTokens", false);
    toast("This server gives no token probabilities; asked again without them.");
    follow(chat.regenerate(answer));
  } else if (!answer.error) say(answer.finish === "stopped" ? "Stopped." : "The answer is complete.");
  strip.refresh();
});

function showAll() {
  keepingEnd(() => view.update());
  showControls();
}

function showControls() {
  const { isAnswering } = chat;
  document.body.classList.toggle("is-empty", !chat.messages.length);
  $("send").hidden = isAnswering;
  $("stop").hidden = !isAnswering;
  $("new-chat").disabled = !chat.messages.length;
  $("cut-note").hidden = !chat.isCut;
  const hasTokens = chat.messages.some((message) => message.tokens?.length);
  $("tokens-toggle").hidden = !hasTokens && !$("settings-form").elements.recordsTokens.checked;
}

/** Waits for an answer that has been begun. */
async function follow(answering) {
  say("Answering …");
  $("log-scroller").scrollTo({ top: $("log-scroller").scrollHeight });
  strip.refresh();
  await answering;
}

/** Does `show`, and stays at the end of the conversation if that is where the user is. */
function keepingEnd(show) {
  const { scrollTop, clientHeight, scrollHeight } = $("log-scroller");
  const isAtEnd = scrollHeight - scrollTop - clientHeight < 60;
  show();
  if (isAtEnd) $("log-scroller").scrollTop = $("log-scroller").scrollHeight;
  showJump();
}

function showJump() {
  const { scrollTop, clientHeight, scrollHeight } = $("log-scroller");
  $("jump").hidden = scrollHeight - scrollTop - clientHeight < 200;
}

$("log-scroller").addEventListener("scroll", showJump, { passive: true });
$("jump").addEventListener("click", () => $("log-scroller").scrollTo({ top: $("log-scroller").scrollHeight }));

// ---------------------------------------------------------------- composing

const prompt = $("prompt");

/** Whether the settings can be sent; leads to the first field that cannot. */
function canSend() {
  const { invalid } = settings;
  if (!invalid) return true;
  openSettings(true);
  invalid.closest("details")?.setAttribute("open", "");
  invalid.focus();
  return false;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || chat.isAnswering || !canSend()) return;
  prompt.value = "";
  follow(chat.ask(text));
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (chat.isAnswering) stop();
  else if (isNarrow() && !$("settings").hidden) openSettings(false);
});

function stop() {
  chat.stop();
  prompt.focus();
}

for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    if (button.dataset.example === "tool") settings.set("tools", JSON.stringify([WEATHER], null, 2));
    prompt.value = button.dataset.prompt;
    prompt.focus();
  });
}

// ---------------------------------------------------------------- header

$("new-chat").addEventListener("click", () => {
  undoable("Conversation cleared", () => chat.replace([]));
  prompt.focus();
});
$("tokens-toggle").addEventListener("click", () => showTokens(!view.showsTokens));
$("theme").addEventListener("click", () =>
  setTheme(THEMES[(THEMES.indexOf(load("theme") ?? "system") + 1) % THEMES.length]),
);
$("settings-toggle").addEventListener("click", () => openSettings($("settings").hidden));
$("settings-close").addEventListener("click", () => openSettings(false));
$("settings-reset").addEventListener("click", () => settings.reset());

function showTokens(on) {
  view.showsTokens = on;
  save("showsTokens", on);
  $("tokens-toggle").setAttribute("aria-pressed", on);
  $("legend").hidden = !on;
  keepingEnd(() => view.update());
}

function setTheme(theme) {
  save("theme", theme === "system" ? null : theme);
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Colours: ${theme}`;
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
  $("theme").querySelector("use").setAttribute("href", `#icon-${theme}`);
}

function isNarrow() {
  return matchMedia("(max-width: 60rem)").matches;
}

/** Beside the conversation where there is room, else above it. */
function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-toggle").setAttribute("aria-expanded", open);
  const covers = open && isNarrow();
  for (const part of [document.querySelector("header"), document.querySelector("main")]) part.inert = covers;
  if (covers) $("settings-close").focus();
  else if (!open) $("settings-toggle").focus();
}

// ---------------------------------------------------------------- models and keys

async function loadModels() {
  try {
    const models = await api.models();
    const chosen = load("model");
    $("model").replaceChildren(
      ...models.map(({ id }) => element("option", { value: id, selected: id === chosen }, id)),
    );
    showModel(models);
    $("model").onchange = () => {
      save("model", $("model").value);
      showModel(models);
    };
    $("unreachable").hidden = true;
  } catch (error) {
    if (error.status === 401) return askForKey(loadModels);
    $("unreachable").hidden = false;
    $("unreachable-reason").textContent = error.message;
  }
}

$("unreachable-retry").addEventListener("click", loadModels);

function showModel(models) {
  const { id, max_model_len: length } = models.find((model) => model.id === $("model").value) ?? {};
  $("welcome-model").textContent = id ?? "the model";
  $("context").textContent = length
    ? `Prompt and answer may have ${length.toLocaleString("en")} tokens together.`
    : "";
}

/** Asks for the key, then does `next`. A key that was given and is refused is said to be wrong. */
function askForKey(next) {
  const dialog = $("key-dialog");
  $("key-wrong").hidden = !api.key;
  dialog.onclose = () => {
    if (dialog.returnValue !== "use") return;
    api.key = $("key").value.trim();
    save("key", api.key, "sessionStorage");
    $("key").value = "";
    Promise.resolve(next()).then(loadModels);
    strip.refresh();
  };
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault(); // the key must not become part of an address
  $("key-dialog").close("use");
});
for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// ---------------------------------------------------------------- dialogs and notices

function showRequest(answer) {
  const text = asCurl(api.url("v1/chat/completions"), chat.requestOf(answer), api.key !== "");
  $("request-text").textContent = text;
  $("request-copy").replaceChildren(copyButton("Copy command", () => text));
  $("request-dialog").showModal();
}

/** Does `change`, and offers to take it back. */
function undoable(label, change) {
  const before = chat.messages;
  change();
  toast(`${label}.`, () => chat.replace(before));
}

let toastTimer = 0;
function toast(text, undo = null) {
  clearTimeout(toastTimer);
  const hide = () => $("toast").replaceChildren();
  const button =
    undo &&
    element("button", { type: "button", class: "plain", onclick: () => (undo(), hide(), prompt.focus()) }, "Undo");
  $("toast").replaceChildren(...[element("span", {}, text), button].filter(Boolean));
  toastTimer = setTimeout(hide, 10_000);
}

/** Tells those who hear the page. */
function say(text) {
  $("status").textContent = text;
}

// ---------------------------------------------------------------- begin

api.key = load("key", "sessionStorage") ?? "";
installTokenCard($("log"));
setTheme(load("theme") ?? "system");
showTokens(load("showsTokens") ?? false);
showAll();
loadModels();
strip.refresh();
addEventListener("pagehide", () => chat.store());
if (!isNarrow()) prompt.focus();
