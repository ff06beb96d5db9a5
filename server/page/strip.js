// The strip of figures above the conversation: asks the server now and then, and says so where it cannot know.

import { readScrape, Trend } from "./metrics.js";

const SECONDS = { answering: 0.8, idle: 2.5 };
const ELSEWHERE = "Other figures: /metrics is off here, or on a port of its own.";

export class Strip {
  #root;
  #api;
  #isAnswering;
  #onready;
  #trend = new Trend();
  #timer = 0;

  /** Shows figures in `root`. Asks more often while `isAnswering()`; calls `onready` when the server becomes ready. */
  constructor(root, api, { isAnswering, onready }) {
    this.#root = root;
    this.#api = api;
    this.#isAnswering = isAnswering;
    this.#onready = onready;
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /** Asks now, and then again and again while the page is seen. */
  async refresh() {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    const timer = (this.#timer = setTimeout(() => {}, 0)); // only the latest call goes on
    try {
      const [health, text] = await Promise.all([this.#api.health(), this.#api.metrics()]);
      await this.#show(health, text);
    } catch (error) {
      this.#say(error.message, "down");
    }
    if (timer !== this.#timer) return;
    this.#timer = setTimeout(() => this.refresh(), SECONDS[this.#isAnswering() ? "answering" : "idle"] * 1000);
  }

  async #show(health, text) {
    let figures;
    if (text !== null) {
      this.#trend.push(readScrape(text), performance.now());
      figures = this.#trend.figures();
    } else figures = await this.#load();
    const state = health === "healthy" ? "up" : "waiting";
    if (state === "up" && ["waiting", "down"].includes(this.#root.dataset.state)) this.#onready();
    this.#say(state === "waiting" ? health : text === null ? ELSEWHERE : "", state);
    const { throughput = null, running, waiting, cache = null, firstToken = null, perToken = null } = figures;
    this.#put("throughput", throughput, (value) => value.toFixed(value < 10 ? 1 : 0));
    this.#put("running", running, String);
    this.#put("waiting", waiting, String);
    this.#put("cache", cache, (value) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`);
    this.#put("first-token", firstToken, duration);
    this.#put("per-token", perToken, duration);
    this.#root.querySelector(".gauge span").style.width = `${(cache ?? 0) * 100}%`;
    this.#root.querySelector("polyline").setAttribute("points", points(this.#trend.history()));
  }

  /** What is known without metrics; it may need the key. */
  async #load() {
    const { num_requests_running: running = null, num_requests_waiting: waiting = null } = await this.#api
      .load()
      .catch(() => ({}));
    return { running, waiting };
  }

  #put(name, value, write) {
    this.#root.querySelector(`[data-figure="${name}"]`).textContent = value === null ? "–" : write(value);
  }

  #say(text, state) {
    this.#root.dataset.state = state;
    const note = this.#root.querySelector(".note");
    if (note.textContent !== text) note.textContent = text; // read out when it changes
    note.hidden = !text;
  }
}

const duration = (seconds) =>
  seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;

/** A line through `values`, in a box of 100 by 20. */
function points(values) {
  const shown = values.slice(-40);
  const top = Math.max(...shown, 1e-9);
  return shown.map((value, i) => `${(100 * i) / Math.max(1, shown.length - 1)},${19 - (18 * value) / top}`).join(" ");
}
