// Vercel's AI SDK over each of the APIs that it can speak.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';
import { ADA, BASE, KEY, MODEL, SUM, WEATHER, collect, idle, weather } from '../server.js';

const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
const compatible = createOpenAICompatible({
  name: 'tandem',
  baseURL: BASE,
  apiKey: KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const anthropic = createAnthropic({ baseURL: BASE, apiKey: KEY });
const models = {
  'openai-compatible': compatible(MODEL),
  'openai chat': openai.chat(MODEL),
  'openai responses': openai.responses(MODEL),
  'anthropic messages': anthropic(MODEL),
};
const Person = z.object({ name: z.string(), age: z.number().int() });
const options = { temperature: 0, maxRetries: 0, maxOutputTokens: 300 };

for (const [name, model] of Object.entries(models)) {
  test(`${name}: streamText says what generateText says`, async () => {
    const whole = await generateText({ ...options, model, prompt: SUM });
    assert.match(whole.text, /42/);
    assert.equal(whole.finishReason, 'stop');
    const stream = streamText({ ...options, model, prompt: SUM });
    assert.equal((await collect(stream.textStream)).join(''), whole.text);
    const { inputTokens, outputTokens } = await stream.usage;
    assert.deepEqual([inputTokens, outputTokens], [whole.usage.inputTokens, whole.usage.outputTokens]);
    assert.ok(inputTokens > 0 && outputTokens > 0);
  });

  test(`${name}: a tool is called and its result used`, async () => {
    for (const generate of [generateText, streamText]) {
      const { cities, report } = weather();
      const getWeather = tool({
        description: 'Get the current weather in a city',
        inputSchema: z.object({ city: z.string() }),
        execute: report,
      });
      const tools = { get_weather: getWeather };
      const done = await generate({ ...options, model, prompt: WEATHER, tools, stopWhen: stepCountIs(3) });
      assert.match(await done.text, /21/);
      assert.deepEqual(cities, ['Paris']);
      assert.equal((await done.steps).length, 2);
    }
  });

  test(`${name}: objects follow their schema`, async () => {
    const asked = { ...options, model, prompt: ADA };
    const { object } = await generateObject({ ...asked, schema: Person });
    assert.deepEqual(object, { name: 'Ada', age: 36 });
    const { output } = await generateText({ ...asked, output: Output.object({ schema: Person }) });
    assert.deepEqual(output, object);
    const stream = streamObject({ ...asked, schema: Person });
    assert.deepEqual((await collect(stream.partialObjectStream)).at(-1), object);
  });
}

test('thoughts are told apart', async () => {
  const providerOptions = { tandem: { reasoningEffort: 'high' } };
  const done = await generateText({ ...options, model: compatible(MODEL), prompt: SUM, providerOptions });
  assert.ok(done.reasoningText.length > 0);
  assert.match(done.text, /42/);
  const stream = streamText({ ...options, model: compatible(MODEL), prompt: SUM, providerOptions });
  assert.equal(await stream.reasoningText, done.reasoningText);
});

test('an aborted stream ends the computation', async () => {
  const controller = new AbortController();
  const stream = streamText({
    ...options,
    model: compatible(MODEL),
    prompt: SUM,
    maxOutputTokens: 1900,
    providerOptions: { tandem: { ignore_eos: true } },
    abortSignal: controller.signal,
    onError: () => {},
  });
  for await (const _ of stream.textStream) controller.abort();
  await idle();
});
