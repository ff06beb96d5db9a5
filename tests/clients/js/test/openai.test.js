// OpenAI's official client and its helpers.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { ADA, BASE, KEY, MODEL, REPORT, SUM, WEATHER, WEATHERS, collect, idle, user, weather } from '../server.js';

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const fields = { model: MODEL, messages: [user(SUM)], temperature: 0 };
const Person = z.object({ name: z.string(), age: z.number().int() });
const City = z.object({ city: z.string() });
const describePerson = [user(ADA)];

test('models are listed and retrieved', async () => {
  const [first] = await collect(client.models.list());
  assert.equal((await client.models.retrieve(first.id)).id, MODEL);
});

test('a stream puts together what a whole answer says', async () => {
  const whole = await client.chat.completions.create(fields);
  assert.match(whole.choices[0].message.content, /42/);
  const events = [];
  const stream = client.chat.completions
    .stream({ ...fields, stream_options: { include_usage: true } })
    .on('content.delta', (event) => events.push(event));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.equal(events.map((event) => event.delta).join(''), whole.choices[0].message.content);
  assert.equal(events.at(-1).snapshot, whole.choices[0].message.content);
  assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
  const { prompt_tokens, completion_tokens, total_tokens } = whole.usage;
  assert.deepEqual(await stream.totalUsage(), { prompt_tokens, completion_tokens, total_tokens });
});

test('log-probabilities of a stream are those of the whole answer', async () => {
  const asked = { ...fields, logprobs: true, top_logprobs: 2 };
  const whole = await client.chat.completions.create(asked);
  const final = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.ok(whole.choices[0].logprobs.content.length > 3);
  assert.deepEqual(final.choices[0].logprobs.content, whole.choices[0].logprobs.content);
});

test('parse gives what the zod schema allows', async () => {
  const asked = { ...fields, messages: describePerson, response_format: zodResponseFormat(Person, 'person') };
  const parsed = await client.chat.completions.parse(asked);
  assert.deepEqual(parsed.choices[0].message.parsed, { name: 'Ada', age: 36 });
  const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, parsed.choices[0].message.parsed);
});

test('parse gives the arguments of a strict function', async () => {
  const tools = [zodFunction({ name: 'get_weather', parameters: City })];
  const parsed = await client.chat.completions.parse({ ...fields, messages: [user(WEATHERS)], tools });
  assert.equal(parsed.choices[0].finish_reason, 'tool_calls');
  const cities = parsed.choices[0].message.tool_calls.map((call) => call.function.parsed_arguments.city);
  assert.deepEqual(cities, ['Paris', 'Rome']);
  const results = parsed.choices[0].message.tool_calls.map((call) => ({
    role: 'tool',
    tool_call_id: call.id,
    content: JSON.stringify(REPORT),
  }));
  const messages = [user(WEATHERS), parsed.choices[0].message, ...results];
  assert.match((await client.chat.completions.create({ ...fields, messages, tools })).choices[0].message.content, /21/);
});

for (const stream of [false, true])
  test(`runTools calls the function and answers with its result (stream: ${stream})`, async () => {
    const { cities, report } = weather();
    const runner = client.chat.completions.runTools({
      ...fields,
      stream,
      messages: [user(WEATHER)],
      tools: [
        {
          type: 'function',
          function: {
            name: 'get_weather',
            description: 'Get the current weather in a city',
            function: report,
            parse: JSON.parse,
            parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
          },
        },
      ],
    });
    const results = [];
    runner.on('functionToolCallResult', (content) => results.push(content));
    const final = await runner.finalContent();
    assert.deepEqual(cities, ['Paris']);
    assert.equal(results.length, 1);
    assert.match(final, /21/);
    assert.deepEqual(runner.messages.map((message) => message.role), ['user', 'assistant', 'tool', 'assistant']);
  });

test('an aborted stream ends the computation', async () => {
  const stream = await client.chat.completions.create({
    ...fields,
    stream: true,
    max_tokens: 1900,
    ignore_eos: true,
  });
  let chunks = 0;
  for await (const _ of stream) if (++chunks === 3) stream.controller.abort();
  assert.ok(chunks < 20);
  await idle();
  const controller = new AbortController();
  const whole = client.chat.completions.create(
    { ...fields, max_tokens: 1900, ignore_eos: true },
    { signal: controller.signal },
  );
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await idle();
});

test('errors have their classes and name the field', async () => {
  const refused = client.chat.completions.create({ ...fields, temperature: 9 });
  await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  const unknown = client.chat.completions.create({ ...fields, model: 'no-such-model' });
  await assert.rejects(unknown, (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found');
});

test('completions stream what they say whole', async () => {
  const asked = { model: MODEL, prompt: ['The capital', 'One plus'], max_tokens: 12, temperature: 0 };
  const whole = await client.completions.create(asked);
  const texts = ['', ''];
  for await (const chunk of await client.completions.create({ ...asked, stream: true }))
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
});

test('responses.stream puts together what a whole response says', async () => {
  const asked = { model: MODEL, input: SUM, temperature: 0 };
  const whole = await client.responses.create(asked);
  assert.match(whole.output_text, /42/);
  let text = '';
  const stream = client.responses.stream(asked).on('response.output_text.delta', (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
  assert.equal(final.usage.total_tokens, whole.usage.total_tokens);
  const again = await collect(await client.responses.retrieve(final.id, { stream: true }));
  assert.equal(again.at(-1).response.output[0].content[0].text, whole.output_text);
});

test('responses.stream resumes a response by its id', async () => {
  const first = await client.responses.create({ model: MODEL, input: SUM, temperature: 0, background: true, stream: true });
  let id = '';
  let seen = 0;
  for await (const event of first) {
    id ||= event.response?.id;
    seen = event.sequence_number;
    if (event.type === 'response.output_text.delta') break;
  }
  const rest = client.responses.stream({ response_id: id, starting_after: seen });
  const numbers = (await collect(rest)).map((event) => event.sequence_number);
  assert.equal(numbers[0], seen + 1);
  assert.match((await rest.finalResponse()).output_text, /42/);
});

test('responses.parse gives what the zod schema allows', async () => {
  const asked = { model: MODEL, input: describePerson, text: { format: zodTextFormat(Person, 'person') }, temperature: 0 };
  const parsed = await client.responses.parse(asked);
  assert.deepEqual(parsed.output_parsed, { name: 'Ada', age: 36 });
  const streamed = await client.responses.stream(asked).finalResponse();
  assert.deepEqual(streamed.output_parsed, parsed.output_parsed);
});

test('responses call a function and go on from its output', async () => {
  const { cities, report } = weather();
  const tools = [zodResponsesFunction({ name: 'get_weather', parameters: City })];
  const first = await client.responses.parse({ model: MODEL, input: WEATHER, tools, temperature: 0 });
  const [call] = first.output.filter((item) => item.type === 'function_call');
  const output = await report(call.parsed_arguments);
  assert.deepEqual(cities, ['Paris']);
  const second = await client.responses.create({
    model: MODEL,
    previous_response_id: first.id,
    input: [{ type: 'function_call_output', call_id: call.call_id, output }],
    tools,
    temperature: 0,
  });
  assert.match(second.output_text, /21/);
});

test('a conversation remembers', async () => {
  const conversation = await client.conversations.create({ metadata: { topic: 'names' } });
  const asked = { model: MODEL, conversation: conversation.id, temperature: 0 };
  await client.responses.create({ ...asked, input: 'My name is Ada.' });
  assert.match((await client.responses.create({ ...asked, input: 'What is my name?' })).output_text, /Ada/);
  const items = await collect(client.conversations.items.list(conversation.id, { limit: 3 }));
  assert.deepEqual(items.map((item) => item.role), ['assistant', 'user', 'assistant', 'user']);
  assert.equal((await client.conversations.delete(conversation.id)).deleted, true);
});

test('input items are paged, responses deleted', async () => {
  const input = [user('a'), { role: 'assistant', content: 'b' }, user(SUM)];
  const made = await client.responses.create({ model: MODEL, input, temperature: 0 });
  const items = await collect(client.responses.inputItems.list(made.id, { limit: 1, order: 'asc' }));
  assert.deepEqual(items.map((item) => item.content[0].text), ['a', 'b', SUM]);
  await client.responses.delete(made.id);
  await assert.rejects(client.responses.retrieve(made.id), OpenAI.NotFoundError);
});

test('a response in the background is cancelled', async () => {
  const made = await client.responses.create({ model: MODEL, input: SUM, background: true, ignore_eos: true, max_output_tokens: 1900 });
  assert.ok(['queued', 'in_progress'].includes(made.status));
  assert.equal((await client.responses.cancel(made.id)).status, 'cancelled');
  await idle();
});
