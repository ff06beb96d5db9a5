// The server's API: requests, streams of server-sent events, and errors in one shape.

/** What went wrong: the API's message, and its status, code and field to blame where there are any. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Reads a stream of server-sent events, however its bytes are split. Format: WHATWG HTML, 9.2.6. */
export class EventParser {
  #decoder = new TextDecoder();
  #line = "";
  #data = [];
  #endedInReturn = false;

  /** The data of the events that `bytes` complete. */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    if (this.#endedInReturn && text[0] === "\n") text = text.slice(1); // the other half of \r\n
    this.#endedInReturn = text ? text.at(-1) === "\r" : false;
    const lines = (this.#line + text).split(/\r\n|\n|\r/);
    this.#line = lines.pop();
    return lines.map((line) => this.#take(line)).filter((event) => event !== null);
  }

  #take(line) {
    if (line === "") {
      const event = this.#data.length ? this.#data.join("\n") : null;
      this.#data = [];
      return event;
    }
    if (line === "data") this.#data.push("");
    else if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    return null;
  }
}

export class Api {
  /** The key that requests are sent with; empty for none. */
  key = "";

  /** The address of a path of the server, below whatever prefix the page is shown under. */
  url(path) {
    return new URL(path, document.baseURI).href;
  }

  /** Names of the models, with what is known of them. */
  async models() {
    return (await (await this.#request("v1/models")).json()).data;
  }

  /** How many requests run and wait. */
  async load() {
    return (await this.#request("load")).json();
  }

  /** The metrics' text; null where the server has them elsewhere, or has none. */
  async metrics() {
    try {
      return await (await this.#request("metrics")).text();
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  /** `healthy`, or the reason why requests are not answered now. */
  async health() {
    const answer = await this.#fetch("health", {});
    const { status, detail } = await answer.json();
    return answer.ok ? status : detail || status;
  }

  /** The chunks of a streamed chat completion. Throws `ApiError`, also in the middle. */
  async *chat(body, signal) {
    const headers = { "content-type": "application/json" };
    const answer = await this.#request("v1/chat/completions", {
      method: "POST",
      headers,
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw apiError(chunk.error, {});
      yield chunk;
    }
    throw new ApiError("The connection ended before the answer did.");
  }

  async #request(path, options = {}) {
    const answer = await this.#fetch(path, options);
    if (answer.ok) return answer;
    const details = { status: answer.status, retryAfter: answer.headers.get("retry-after") };
    const body = await answer.json().catch(() => null);
    throw apiError(body?.error ?? { message: `The server answered with status ${answer.status}.` }, details);
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...(this.key && { authorization: `Bearer ${this.key}` }) };
    try {
      return await fetch(this.url(path), { ...options, headers, credentials: "same-origin", cache: "no-store" });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("The server cannot be reached.");
    }
  }
}

async function* events(stream) {
  const reader = stream.getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("The connection broke in the middle of the answer.");
      });
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function apiError(error, details) {
  const { message, code = null, param = null } = typeof error === "string" ? { message: error } : error;
  return new ApiError(message || "The server reports an error without a message.", { ...details, code, param });
}
