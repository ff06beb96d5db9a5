// The conversation: what was said, what is being answered, and what the browser keeps of it.

import { addChunk, newAnswer } from "./answer.js";
import { requestFields, requestMessages } from "./request.js";
import { load, save, saveText } from "./storage.js";

const MAX_STORED = 2_000_000; // characters; browsers give a page about five million

/**
 * Messages, oldest first: `{role: "user", content}` and answers (see answer.js).
 * Dispatches `change` when there are others, `answer` when the last one has grown, `end` when it has ended.
 */
export class Chat extends EventTarget {
  messages = [];
  /** Whether the stored conversation lacks its beginning, because it is too long. */
  isCut = false;
  #api;
  #options;
  #abort = null;

  /** `options()` tells the model and the settings to ask with. */
  constructor(api, options) {
    super();
    this.#api = api;
    this.#options = options;
    this.messages = restored(load("conversation"));
  }

  get isAnswering() {
    return this.#abort !== null;
  }

  /** Says something, and has it answered. */
  ask(content) {
    this.messages.push({ role: "user", content });
    return this.answer();
  }

  /** Has a message of the user's answered again in other words; what came after it is dropped. */
  edit(message, content) {
    this.#cut(message);
    return this.ask(content);
  }

  /** Replaces an answer, and what came after it, by another one. */
  regenerate(answer) {
    this.#cut(answer);
    return this.answer();
  }

  /** Drops one message. */
  remove(message) {
    this.stop();
    this.replace(this.messages.filter((other) => other !== message));
  }

  /** Makes this the conversation. */
  replace(messages) {
    this.stop();
    this.messages = messages;
    this.#changed();
  }

  /** Ends the answer that is being made, as far as it has come. */
  stop() {
    this.#abort?.abort();
    this.#abort = null;
  }

  /** Has the conversation answered as it stands. */
  async answer() {
    this.stop();
    const { model, settings } = this.#options();
    const fields = requestFields(model, settings);
    const messages = requestMessages(settings.system, this.messages);
    const answer = newAnswer({ ...fields, system: settings.system }, performance.now());
    const abort = (this.#abort = new AbortController());
    this.messages.push(answer);
    this.#changed();
    try {
      for await (const chunk of this.#api.chat({ ...fields, messages }, abort.signal)) {
        if (abort.signal.aborted) break;
        addChunk(answer, chunk, performance.now());
        this.#tell("answer", answer);
      }
    } catch (error) {
      if (!abort.signal.aborted) answer.error = plain(error);
    }
    if (abort.signal.aborted) answer.finish = "stopped";
    else this.#abort = null;
    answer.ended = performance.now();
    this.store();
    this.#tell("end", answer);
    return answer;
  }

  /** The body that asked for an answer. */
  requestOf(answer) {
    const { system, ...fields } = answer.request;
    const before = this.messages.slice(0, this.messages.indexOf(answer));
    return { ...fields, messages: requestMessages(system, before) };
  }

  /** Keeps the conversation for the next visit: token by token as long as that fits, else its last part. */
  store() {
    const bare = (message) => (message.tokens?.length ? { ...message, tokens: [] } : message);
    let kept = this.messages;
    let text = JSON.stringify(kept);
    if (text.length > MAX_STORED) text = JSON.stringify((kept = kept.map(bare)));
    while (text.length > MAX_STORED) text = JSON.stringify((kept = kept.slice(Math.ceil(kept.length / 4))));
    this.isCut = kept.length < this.messages.length || !saveText("conversation", text);
    if (!this.messages.length) save("conversation", null);
  }

  #cut(message) {
    this.messages = this.messages.slice(0, this.messages.indexOf(message));
  }

  #changed() {
    this.store();
    this.#tell("change", null);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** What was kept, answers that the visit's end cut off among it. */
function restored(messages) {
  if (!Array.isArray(messages)) return [];
  return messages.map((message) =>
    message.role === "assistant" && !message.finish && !message.error ? { ...message, finish: "stopped" } : message,
  );
}

const plain = ({ message, status, code, param, retryAfter }) => ({ message, status, code, param, retryAfter });
