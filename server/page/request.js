// A conversation and settings as a request's body (`CreateChatCompletionRequest`), and as a curl command.

export const NUM_ALTERNATIVES = 5;

/** All of a body but its messages. */
export function requestFields(model, settings) {
  const { system, recordsTokens, tools, tool_choice, response_format, other, ...sampling } = settings;
  const fields = { model, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  for (const [name, value] of Object.entries(sampling)) if (value !== null && value !== "") fields[name] = value;
  if (recordsTokens) Object.assign(fields, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
  if (tools?.length) Object.assign(fields, { tools: tools.map(asTool), ...(tool_choice && { tool_choice }) });
  if (response_format) fields.response_format = asResponseFormat(response_format);
  return { ...fields, ...other, stream: true };
}

/** The messages of a body: an answer with calls is followed by their results. */
export function requestMessages(system, messages) {
  const own = system ? [{ role: "system", content: system }] : [];
  return [...own, ...messages.flatMap((message) => (message.role === "user" ? [asked(message)] : answered(message)))];
}

/** A command for a POSIX shell that sends the same. The key is left to a variable. */
export function asCurl(url, body, hasKey) {
  const lines = [`curl --no-buffer ${quote(url)}`, `-H ${quote("Content-Type: application/json")}`];
  if (hasKey) lines.push('-H "Authorization: Bearer $TANDEM_API_KEY"');
  lines.push(`-d ${quote(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

const asked = ({ content }) => ({ role: "user", content });

function answered({ content, reasoning, calls }) {
  if (!content && !calls.length) return []; // it failed or was stopped before it began
  const message = { role: "assistant", content: content || (calls.length ? null : "") };
  if (reasoning) message.reasoning_content = reasoning;
  if (calls.length) message.tool_calls = calls.map(asToolCall);
  return [message, ...calls.filter((call) => call.result !== null).map(asResult)];
}

const asToolCall = ({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } });
const asResult = ({ id, result }) => ({ role: "tool", tool_call_id: id, content: result });

/** A tool, also where only the function is given. */
const asTool = (tool) => (tool.function ? tool : { type: "function", function: tool });

/** A `response_format`, also where only the schema is given. */
function asResponseFormat(given) {
  const types = ["json_schema", "json_object", "structural_tag", "text"];
  if (types.includes(given.type)) return given;
  return { type: "json_schema", json_schema: { name: "answer", schema: given, strict: true } };
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
