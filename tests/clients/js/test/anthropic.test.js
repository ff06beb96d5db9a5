// Anthropic's official client and its helpers.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import Anthropic from '@anthropic-ai/sdk';
import { betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { z } from 'zod';
import { ADA, KEY, MODEL, REPORT, SUM, URL, WEATHER, idle, user, weather } from '../server.js';

const client = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const fields = { model: MODEL, max_tokens: 300, messages: [user(SUM)], temperature: 0 };
const Person = z.object({ name: z.string(), age: z.number().int() });

test('a stream puts together what a whole answer says', async () => {
  const whole = await client.messages.create(fields);
  assert.match(whole.content[0].text, /42/);
  let text = '';
  const final = await client.messages.stream(fields).on('text', (delta) => (text += delta)).finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.deepEqual(final.content, whole.content);
  assert.equal(final.stop_reason, whole.stop_reason);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test('thoughts come as a block of their own', async () => {
  const asked = { ...fields, max_tokens: 1500, thinking: { type: 'enabled', budget_tokens: 1024 } };
  delete asked.temperature;
  const final = await client.messages.stream(asked).finalMessage();
  assert.deepEqual(final.content.map((block) => block.type), ['thinking', 'text']);
  assert.ok(final.content[0].thinking.length > 0);
});

for (const stream of [false, true])
  test(`the tool runner calls the function and answers with its result (stream: ${stream})`, async () => {
    const { cities, report } = weather();
    const tool = betaZodTool({
      name: 'get_weather',
      description: 'Get the current weather in a city',
      inputSchema: z.object({ city: z.string() }),
      run: report,
    });
    const runner = client.beta.messages.toolRunner({ ...fields, messages: [user(WEATHER)], tools: [tool], stream });
    const final = await runner.runUntilDone();
    assert.deepEqual(cities, ['Paris']);
    assert.match(final.content[0].text, new RegExp(String(REPORT.temperature)));
    assert.equal(final.stop_reason, 'end_turn');
  });

test('parse gives what the zod schema allows', async () => {
  const asked = { ...fields, messages: [user(ADA)], output_config: { format: zodOutputFormat(Person) } };
  const parsed = await client.messages.parse(asked);
  assert.deepEqual(parsed.parsed_output, { name: 'Ada', age: 36 });
});

test('tokens are counted as they are billed', async () => {
  const { model, messages } = fields;
  const counted = await client.messages.countTokens({ model, messages });
  assert.equal(counted.input_tokens, (await client.messages.create(fields)).usage.input_tokens);
});

test('an aborted stream ends the computation', async () => {
  const stream = client.messages.stream({ ...fields, max_tokens: 1900, ignore_eos: true });
  stream.on('text', () => stream.abort());
  await assert.rejects(stream.finalMessage(), Anthropic.APIUserAbortError);
  await idle();
});

test('errors have their classes', async () => {
  await assert.rejects(client.messages.create({ ...fields, messages: [] }), Anthropic.BadRequestError);
  await assert.rejects(client.messages.create({ ...fields, model: 'no-such-model' }), Anthropic.NotFoundError);
});

test('models are listed', async () => {
  const page = await client.models.list();
  assert.ok(page.data.some((model) => model.id === MODEL));
});
