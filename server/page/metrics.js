// Prometheus' text format, and what a strip of figures needs of it.

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$/;
const LABEL = /\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*,?/y;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };
const NUMBERS = { "+Inf": Infinity, Inf: Infinity, "-Inf": -Infinity, NaN: NaN };

/** Samples by name, each with its labels and value. Lines that are no samples are passed over. */
export function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const [, name, labels = "", number] = match;
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels: parseLabels(labels), value: NUMBERS[number] ?? Number(number) });
  }
  return samples;
}

function parseLabels(text) {
  const labels = {};
  LABEL.lastIndex = 0;
  for (let match; (match = LABEL.exec(text));)
    labels[match[1]] = match[2].replace(/\\[n"\\]/g, (pair) => ESCAPES[pair]);
  return labels;
}

/** What is read of a scrape: gauges as they are, counters and histograms as totals. */
export function readScrape(text) {
  const samples = parseMetrics(text);
  const values = (name) => (samples.get(name) ?? []).map((sample) => sample.value);
  const sum = (name) => (samples.has(name) ? values(name).reduce((total, value) => total + value, 0) : null);
  const histogram = (name) => ({ sum: sum(`${name}_sum`), count: sum(`${name}_count`) });
  return {
    tokens: sum("vllm:generation_tokens_total"),
    running: sum("vllm:num_requests_running"),
    waiting: sum("vllm:num_requests_waiting"),
    cache: samples.has("vllm:kv_cache_usage_perc") ? Math.max(...values("vllm:kv_cache_usage_perc")) : null,
    firstToken: histogram("vllm:time_to_first_token_seconds"),
    perToken: histogram("vllm:inter_token_latency_seconds"),
  };
}

/** Scrapes of the last minute, and the figures that follow from them. */
export class Trend {
  #scrapes = []; // {time, …readScrape}

  /** Adds a scrape taken at `time`, in milliseconds; one that counts less than before is another server's first. */
  push(scrape, time) {
    if (this.#scrapes.length && scrape.tokens < this.#scrapes.at(-1).tokens) this.#scrapes = [];
    this.#scrapes.push({ ...scrape, time });
    while (this.#scrapes.length > 2 && this.#scrapes[0].time < time - 60_000) this.#scrapes.shift();
  }

  /** Figures of now: rates of the last seconds, means of the last minute. Null is unknown. */
  figures() {
    const now = this.#scrapes.at(-1);
    return {
      throughput: this.#rate(this.#scrapes.find(({ time }) => time >= now.time - 4_000) ?? now, now),
      running: now.running,
      waiting: now.waiting,
      cache: now.cache,
      firstToken: this.#mean("firstToken"),
      perToken: this.#mean("perToken"),
    };
  }

  /** Tokens a second between neighbours, oldest first. */
  history() {
    return this.#scrapes.slice(1).map((scrape, i) => this.#rate(this.#scrapes[i], scrape));
  }

  #rate(from, to) {
    return to.time > from.time ? ((to.tokens - from.tokens) / (to.time - from.time)) * 1000 : 0;
  }

  /** Seconds: of the last minute, or of all time if nothing has happened in it. */
  #mean(name) {
    const [first, last] = [this.#scrapes[0][name], this.#scrapes.at(-1)[name]];
    const count = last.count - first.count;
    if (count > 0) return (last.sum - first.sum) / count;
    return last.count > 0 ? last.sum / last.count : null;
  }
}
