// An answer while it comes: chunks of a stream (`CreateChatCompletionStreamResponse`) put together.

/** An answer to which nothing has come yet. `request` is the body that asks for it, without the messages. */
export function newAnswer(request, now) {
  return {
    role: "assistant",
    request,
    content: "",
    reasoning: "",
    calls: [], // {id, name, arguments, result}; the result is null until the user gives one
    tokens: [], // {text, bytes, isHidden, logprob, top: [[text, logprob], …]}
    usage: null,
    begun: now, // milliseconds, as all times here
    first: null,
    last: null,
    finish: null,
    error: null,
  };
}

/** Adds one chunk that has arrived at `now`. */
export function addChunk(answer, chunk, now) {
  if (chunk.usage) answer.usage = usageOf(chunk.usage);
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content, reasoning, tool_calls } = choice.delta ?? {};
  const entries = choice.logprobs?.content ?? [];
  const thought = reasoning_content ?? reasoning;
  if (content || thought || tool_calls || entries.length) {
    answer.first ??= now;
    answer.last = now;
  }
  answer.content += content ?? "";
  answer.reasoning += thought ?? "";
  for (const call of tool_calls ?? []) addCall(answer.calls, call);
  answer.tokens.push(...entries.map(token));
  answer.finish = choice.finish_reason ?? answer.finish;
}

/**
 * Tokens a second, from the request to the last token; null while that cannot be said. The wait for the first one
 * counts: where chunks pile up on their way, the time between the first and the last says nothing.
 */
export function tokensPerSecond({ usage, begun, last }) {
  return usage?.completion && last > begun ? (usage.completion / (last - begun)) * 1000 : null;
}

function usageOf({ prompt_tokens, completion_tokens, prompt_tokens_details, completion_tokens_details }) {
  return {
    prompt: prompt_tokens,
    completion: completion_tokens ?? 0,
    cached: prompt_tokens_details?.cached_tokens ?? 0,
    reasoning: completion_tokens_details?.reasoning_tokens ?? 0,
  };
}

function addCall(calls, { index, id, function: called }) {
  calls[index] ??= { id: id ?? `call_${index}`, name: "", arguments: "", result: null };
  calls[index].name += called?.name ?? "";
  calls[index].arguments += called?.arguments ?? "";
}

/** An entry of `logprobs.content`; bytes are kept only where they are no text of their own. */
function token({ token: text, bytes, logprob, top_logprobs }) {
  const top = (top_logprobs ?? []).map((other) => [other.token, round(other.logprob)]);
  const entry = { text, logprob: round(logprob), top };
  if (bytes === null) entry.isHidden = true;
  else if (bytes && !isText(bytes)) entry.bytes = bytes;
  return entry;
}

function isText(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
    return true;
  } catch {
    return false;
  }
}

const round = (value) => Math.round(value * 1e4) / 1e4;
