// The server under test, and what the tests of all libraries ask of it.
import assert from 'node:assert/strict';

export const URL = process.env.TANDEM_URL;
assert.ok(URL, 'TANDEM_URL names the server: run `make clients`');
export const MODEL = process.env.TANDEM_MODEL ?? 'tandem-demo';
export const BASE = `${URL}/v1`;
export const KEY = 'none';

export const SUM = 'What is 17 plus 25?';
export const ADA = 'Give me a JSON object with name "Ada" and age 36.';
export const WEATHER = 'What is the weather in Paris?';
export const WEATHERS = 'What is the weather in Paris and in Rome?';
export const REPORT = { temperature: 21, sky: 'sunny' };
export const user = (content) => ({ role: 'user', content });

/** A function that reports the weather and remembers the cities it was asked for. */
export function weather() {
  const cities = [];
  return { cities, report: async ({ city }) => (cities.push(city), JSON.stringify(REPORT)) };
}

/** What an async iterable yields. */
export async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** Wait until the server computes nothing. */
export async function idle(seconds = 5) {
  for (const end = Date.now() + seconds * 1000; ; await new Promise((done) => setTimeout(done, 20))) {
    const load = await (await fetch(`${URL}/load`)).json();
    if (load.num_requests_unfinished === 0) return;
    assert.ok(Date.now() < end, `still busy: ${JSON.stringify(load)}`);
  }
}
