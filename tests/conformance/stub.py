"""A server that does everything right, or one thing wrong.

``http://host/v1`` is the clean one; ``http://host/wrong/NAME/v1`` has the fault ``NAME`` (spaces as "-", several
joined by "+"). ``tests/conformance/faults.py`` lists them. Every request needs the key ``KEY``.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import hashlib
import json
import math
import random
import struct
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.conformance import fields
from tests.conformance.fields import BadField
from tests.conformance.language import Answer, SchemaError, generate, json_of, spell

KEY = "the-key"
MODEL = "org/stub"
CONTEXT = 100_000
STEP = 0.001  # seconds a token
_faults: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("faults", default=frozenset())
_running = 0
_generated = 0
_abandoned = 0  # streams that nobody has read to the end
_stored: dict[str, dict[str, Any]] = {}
Json = dict[str, Any]


def wrong(name: str) -> bool:
    """Whether this request has this fault."""
    return name in _faults.get()


class Stub:
    """The server in a thread, on a port that the system picks."""

    def __init__(self) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Stub:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Faults, ids and CORS around the routes."""
    path = scope["path"]
    names: frozenset[str] = frozenset()
    if path.startswith("/wrong/"):
        _, _, joined, path = path.split("/", 3)
        names, path = frozenset(joined.replace("-", " ").split("+")), "/" + path
    _faults.set(names)
    request = Request(scope, receive)
    try:
        response = await route(request, path)
    except BadField as error:
        response = refusal(error, path)
        if wrong("errors in streams"):
            response = Response(b"data: " + response.body + b"\n\n", 200, media_type="text/event-stream")
    except ClientDisconnect:
        return
    if not wrong("no request id"):
        response.headers["x-request-id"] = uuid.uuid4().hex
    if wrong("closes connections"):
        response.headers["connection"] = "close"
    if wrong("words for limits"):
        response.headers["x-ratelimit-limit-requests"] = "many"
    if "origin" in request.headers and not (wrong("no cors for errors") and response.status_code >= 400):
        response.headers["access-control-allow-origin"] = "*"
        if wrong("credentials for all"):
            response.headers["access-control-allow-credentials"] = "true"
    await response(scope, receive, send)


def refusal(error: BadField, path: str) -> Response:
    """An error in OpenAI's shape, or Anthropic's on its routes."""
    status = 500 if wrong("500 on bad input") and error.status == 400 else error.status
    status = 422 if wrong("422") and status == 400 else status
    message = str(error)
    if wrong("leak"):
        message += ' File "/home/me/server.py", line 3'
    if path.startswith("/v1/messages") and not wrong("openai errors for anthropic"):
        kind = {404: "not_found_error", 401: "authentication_error"}.get(status, "invalid_request_error")
        return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)
    if wrong("html errors"):
        return Response("<h1>Not found</h1>", status, media_type="text/html")
    body = {"message": message, "type": "invalid_request_error", "param": error.param, "code": error.code}
    if wrong("error without param"):
        del body["param"]
    if wrong("param not named"):
        body["param"] = None
    if wrong("other error type"):
        body["type"] = "bad"
    headers = {"allow": "POST"} if status == 405 and not wrong("no allow") else {}
    return JSONResponse({"error": body}, status, headers)


async def route(request: Request, path: str) -> Response:
    """Method and path to an answer."""
    if wrong("no head") and request.method == "HEAD":
        raise BadField(None, "no HEAD", 405)
    if wrong("ids fail") and len(request.headers.get("x-request-id", "")) > 128:
        raise BadField(None, "internal error", 500)
    if wrong("forwarded header fails") and "x-forwarded-host" in request.headers:
        raise BadField(None, "internal error", 500)
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        headers = {"access-control-allow-methods": "*" if not wrong("preflight") else "GET"}
        headers["access-control-allow-headers"] = "authorization, content-type"
        return Response(None, 204, headers)
    if path == "/health":
        return JSONResponse({"status": "healthy"}, 500 if wrong("unhealthy") else 200)
    keys = [value.removeprefix("Bearer ") for value in request.headers.getlist("authorization")]
    keys += request.headers.getlist("x-api-key")
    by_host = wrong("key by host") and "health" in request.headers.get("host", "")
    if KEY not in keys and not (wrong("any key") and any(keys)) and not by_host:
        raise BadField(None, "a key is needed", 401, "invalid_api_key")
    if path.startswith(("/v1/files", "/v1/batches")):
        from tests.conformance.stub_files import answer

        return await answer(request, path)
    if method == "GET":
        return get(path.replace("//", "/") if by_host else path)
    known = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}
    known |= {"/v1/decisions", "/v1/messages/count_tokens", "/tokenize", "/detokenize"}
    if method == "DELETE" and path.startswith("/v1/responses/") and forget(path.rpartition("/")[2]):
        return JSONResponse({"deleted": True})
    if path not in known:
        is_known = path == "/v1/models" and method != "POST"
        raise BadField(None, "no such route", 405 if is_known else 404, "unknown_url")
    if method != "POST":
        raise BadField(None, "use POST", 405, "method_not_allowed")
    return await post(request, path)


def forget(name: str) -> bool:
    """Delete a stored response; whether there was one."""
    return name in _stored if wrong("not deleted") else _stored.pop(name, None) is not None


def get(path: str) -> Response:
    """Models, metrics, load, stored responses."""
    models = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "me"} for name in (MODEL, "alias")]
    for entry in models:
        entry["max_model_len"] = CONTEXT
        if wrong("created float"):
            entry["created"] = 1700000000.5
        if wrong("no owner"):
            del entry["owned_by"]
    if wrong("double name"):
        models.append(models[0])
    if path == "/v1/models":
        return JSONResponse({"object": "models" if wrong("list object") else "list", "data": models})
    if path.startswith("/v1/models/"):
        found = [entry for entry in models if entry["id"] == path.removeprefix("/v1/models/")]
        if wrong("any model"):
            found = found or models
        if not found or wrong("no retrieve"):
            raise BadField(None, "no such model", 404, "model_not_found")
        return JSONResponse(found[0])
    if path == "/metrics":
        text = "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total "
        text += f'{0 if wrong("metrics do not count") else _generated}\n# TYPE a gauge\na{{b="c"}} 1.0\n'
        if wrong("metrics"):
            text += "a{b=c} 1.0\n"
        return Response(text, media_type="text/plain; version=0.0.4")
    if path == "/load":
        return JSONResponse({"server_load": _running})
    if path.startswith("/v1/responses/") and (stored := _stored.get(path.rpartition("/")[2])):
        return JSONResponse(stored)
    if path in ("/v1/chat/completions", "/v1/completions"):
        raise BadField(None, "use POST", 405, "method_not_allowed")
    raise BadField(None, "no such route", 404, "unknown_url")


async def post(request: Request, path: str) -> Response:
    """Body to answer."""
    kind = request.headers.get("content-type", "")
    if not wrong("exact content type"):
        kind = kind.partition(";")[0].strip().lower()
    if kind != "application/json" and not wrong("any content type"):
        raise BadField(None, "send application/json", 415, "unsupported_media_type")
    if int(request.headers.get("content-length", "0")) > 2**25 and not wrong("any length"):
        raise BadField(None, "the body is too large", 413, "request_too_large")
    data = await request.body()
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        if wrong("null character") and "\0" in str(body.get("messages", [{}])[0].get("content")):
            raise BadField(None, "internal error", 500)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, ZeroDivisionError, RecursionError):
        raise BadField(None, "the body is not a JSON object", 500 if wrong("500 on bad JSON") else 400) from None
    if wrong("unknown field refused") and "no_such_field" in body:
        raise BadField(None, "unknown", 500)
    if body.get("model", MODEL) not in (MODEL, "alias") and isinstance(body["model"], str) and not wrong("any name"):
        raise BadField("model", "no such model", 404, "model_not_found")
    try:
        return await ROUTES[path](request, body)
    except SchemaError as error:
        raise BadField("response_format", str(error), 500 if wrong("500 on schema") else 400) from error


def prompt_of(body: Json) -> str:
    """A conversation as text."""
    parts = []
    for message in body["messages"]:
        text = message.get("content") or ""
        if isinstance(text, list):
            text = "parts " * wrong("parts marked") + "".join(
                part.get("text") or str(part.get("content", "")) for part in text
            )
        if wrong("template"):
            text = text.replace("{{ 'ab' * 2000 }}", "ab" * 2000)
        role = message["role"].replace("developer", "system")
        if message["role"] == "developer" and wrong("developer dropped"):
            continue
        parts.append(f"{role}: {text}\n")
    return "".join(parts)


def fit(prompt: str) -> None:
    """Refuse what is too long."""
    if len(prompt) > CONTEXT and not wrong("no limit of length"):
        code = "invalid_value" if wrong("other code for length") else "context_length_exceeded"
        raise BadField("messages", "the prompt is too long", 400, code)


def generator(given: Json, index: int) -> random.Random | None:
    """Of one choice; None is greedy."""
    if given.get("temperature", 1) == 0:
        return random.Random() if wrong("greedy varies") else None
    seed = given.get("seed")
    if wrong("one seed for all"):
        seed = None if seed is None else 1
    if seed is None or wrong("seed ignored"):
        return random.Random()
    if wrong("seed depends on company") and _running > 1:
        return random.Random()
    return random.Random(f"{seed} {index}")


def answers(prompt: str, given: Json, limit: int) -> list[Answer]:
    """All choices of one prompt."""
    found = []
    stop = given.get("stop", [])
    stops = [] if wrong("stop ignored") else [stop] if isinstance(stop, str) else stop
    if wrong("stop list ignored") and isinstance(stop, list):
        stops = []
    form, choice = given.get("response_format", {}), given.get("tool_choice", "auto")
    for index in range(given.get("n", 1)):
        rng = generator(given, index)
        own = rng or random.Random(0)
        if choice == "none" and given.get("tools") and wrong("calls despite none"):
            given["tool_choice"] = choice = "required"
        wants = choice == "auto" and "the weather in Paris?" in prompt and not wrong("never calls")
        if given.get("tools") and (wants or choice == "required" or isinstance(choice, dict)):
            found.append(call(given, own, limit))
        elif form.get("type") == "json_schema":
            schema = form["json_schema"].get("schema", {})
            try:
                text = json_of(schema, own)
            except SchemaError:
                if not wrong("any schema"):
                    raise
                text = "{}"
            if wrong("keys sorted"):
                text = json.dumps(json.loads(text), sort_keys=True)
            if wrong("first choice only") and index:
                text = "no JSON"
            if wrong("schema loose"):
                text = text.replace("{", '{"extra": 1, ', 1).replace(", }", "}")
            found.append(spell(text, limit))
        elif form.get("type") == "json_object":
            found.append(spell("not json" if wrong("no object") else '{"wet": true}', limit))
        else:
            if wrong("text format") and form:
                prompt += "x"
            if wrong("spoilt") and _abandoned > 20:
                prompt += "x"
            bias = {chr(int(k)): v for k, v in given.get("logit_bias", {}).items()}
            if wrong("bias ignored"):
                bias = {}
            if wrong("ban ignored"):
                bias = {k: v for k, v in bias.items() if v > 0}
            frequency = 0 if wrong("penalty ignored") else given.get("frequency_penalty", 0)
            if wrong("greedy varies"):
                given["temperature"] = 1
            heat, presence = given.get("temperature", 1.0), given.get("presence_penalty", 0)
            found.append(generate(prompt, limit, stops, rng, heat, bias, frequency, presence))
            if wrong("stop included") and stops and found[-1].finish == "stop":
                found[-1].text += stops[-1]
        if wrong("cut off as stop"):
            found[-1].finish = "stop"
    return found


def call(given: Json, rng: random.Random, limit: int) -> Answer:
    """A tool call."""
    tools = {tool["function"]["name"]: tool["function"] for tool in given["tools"]}
    choice = given.get("tool_choice", "auto")
    name = next(iter(tools))
    if isinstance(choice, dict) and not wrong("name ignored"):
        name = choice["function"]["name"]
    arguments = json_of(tools[name].get("parameters", {"type": "object"}), rng)
    if wrong("arguments not JSON"):
        arguments = arguments[:-1]
    if wrong("arguments do not fit"):
        arguments = "{}"
    if wrong("arguments lose characters"):
        arguments = arguments.encode("ascii", "replace").decode().replace("?", "x")
    answer = spell(arguments, limit)
    answer.text, answer.finish = "", answer.finish.replace("stop", "tool_calls")
    answer.calls = [{"name": name, "arguments": arguments}] * (2 if wrong("always parallel") else 1)
    if wrong("no call"):
        answer.calls = []
    if wrong("finish after calls"):
        answer.finish = "stop"
    return answer


def usage_of(prompt_tokens: int, found: list[Answer]) -> Json:
    """Of chat and completions."""
    global _generated
    spent = sum(len(answer.tokens) for answer in found[:1] if wrong("usage of one")) or sum(
        len(answer.tokens) for answer in found if not wrong("usage of one")
    )
    _generated += spent
    spent += wrong("completion tokens off")
    total = prompt_tokens + spent + wrong("usage off by one")
    return {"prompt_tokens": prompt_tokens, "completion_tokens": spent, "total_tokens": total}


async def work(request: Request, tokens: int) -> None:
    """Take the time that so many tokens take, while somebody waits."""
    global _running
    _running += 1
    if wrong("overload") or wrong("no retry after"):
        tokens += 200
    try:
        for _ in range(min(tokens, 1000)):
            await asyncio.sleep(STEP)
            if await request.is_disconnected() and not wrong("leaks"):
                break
    finally:
        _running -= not wrong("leaks")


async def chat(request: Request, body: Json) -> Response:
    """POST /v1/chat/completions."""
    if wrong("accepts anything"):
        for name, check in fields.CHAT.items():
            if (
                name in body
                and name not in ("messages", "model")
                and body[name] is not None
                and not check(body[name])
            ):
                del body[name]
    if wrong("empty messages accepted") and body.get("messages") == []:
        body["messages"] = [{"role": "user", "content": ""}]
    if wrong("fifth stop accepted") and isinstance(body.get("stop"), list):
        body["stop"] = body["stop"][:4]
    if wrong("null refused") and None in body.values():
        raise BadField(None, "null")
    if wrong("parts fail") and any(isinstance(m.get("content"), list) for m in body.get("messages", [])):
        raise BadField("messages", "text only", 500)
    if wrong("calls in history refused") and any(m.get("tool_calls") for m in body.get("messages", [])):
        raise BadField("messages", "text only")
    table = dict(fields.CHAT)
    if wrong("any tool"):
        table["tools"] = lambda v: isinstance(v, list)
    if wrong("auto refused") and body.get("tool_choice") == "auto":
        raise BadField("tool_choice", "not auto")
    if wrong("one turn") and len(body.get("messages", [])) > 2:
        raise BadField("messages", "one turn only")
    if wrong("no developer") and body.get("messages", [{}])[0].get("role") == "developer":
        raise BadField("messages", "no such role")
    if wrong("one stop") and len(body.get("stop") or "") > 1:
        raise BadField(None, "one stop string only")
    given = fields.check(body, table, "messages", "model")
    if wrong("huge limit fails") and given.get("max_tokens", 0) > 10**6:
        raise BadField("max_tokens", "too much", 500)
    names = [tool["function"]["name"] for tool in given.get("tools", [])]
    choice = given.get("tool_choice", "auto")
    if choice == "required" and not names and not wrong("required without tools"):
        raise BadField("tool_choice", "there are no tools")
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        if not wrong("unknown tool accepted"):
            raise BadField("tool_choice", "no such tool")
        given["tool_choice"] = "auto"
    if "top_logprobs" in given and not given.get("logprobs") and not wrong("top alone"):
        raise BadField("top_logprobs", "it needs logprobs")
    prompt = prompt_of(given)
    fit(prompt)
    limits = [given[name] for name in ("max_completion_tokens", "max_tokens") if name in given]
    if wrong("newer limit ignored"):
        limits = [given[name] for name in ("max_tokens",) if name in given]
    limit = (limits[-1] if wrong("older limit wins") else limits[0]) if limits else 2**31
    if wrong("limit ignored"):
        limit = 20
    found = answers(prompt, given, limit)
    if wrong("overload") and _running > 20:
        raise BadField(None, "too busy", 500)
    if wrong("no retry after") and _running > 20:
        raise BadField(None, "too busy", 429)
    usage = usage_of(len(prompt), found)
    if (thought := thought_of(prompt)) and not wrong("reasoning not counted"):
        usage["completion_tokens_details"] = {"reasoning_tokens": min(len(thought), usage["completion_tokens"])}
    head = {
        "id": "chatcmpl-1" if wrong("same id") else f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time() * (1000 if wrong("created in ms") else 1)),
        "model": "" if wrong("no model name") else given["model"],
        "system_fingerprint": "stub",
    }
    if given.get("stream") or ("stream_options" in given and wrong("streams unasked")):
        return stream(request, chat_chunks(head, given, found, usage, thought))
    choices = []
    for index, answer in enumerate(found):
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message |= {"content": None, "tool_calls": [tool_call(c) for c in answer.calls]}
        if thought:
            message["reasoning_content"] = thought
            if wrong("reasoning in content"):
                message["content"] = f"<think>{thought}</think>{answer.text}"
        if wrong("stray null"):
            message["tool_calls"] = None
        if wrong("no role"):
            del message["role"]
        if wrong("null content") and not answer.calls:
            message["content"] = None
        finish = None if wrong("null finish") else answer.finish
        logprobs = chat_logprobs(answer, given) if given.get("logprobs") or wrong("logprobs unasked") else None
        if wrong("first choice only") and index:
            logprobs = None
        place = 0 if wrong("all indexes 0") else index
        choices.append({"index": place, "message": message, "logprobs": logprobs, "finish_reason": finish})
    await work(request, len(found[0].tokens))
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})


def thought_of(prompt: str) -> str:
    """Reasoning before the answer to one question."""
    return "3 and 4 more" if prompt.endswith("What is 3 plus 4?\n") and not wrong("no reasoning") else ""


def tool_call(function: dict[str, str]) -> Json:
    """As it is in a message."""
    name = "call_1" if wrong("same call id") else f"call_{uuid.uuid4().hex}"
    made: Json = {"id": name, "type": "function", "function": dict(function)}
    if wrong("arguments as object"):
        made["function"]["arguments"] = json.loads(function["arguments"])
    return made


def chat_logprobs(answer: Answer, given: Json, first: int = 0, last: int = 10**9) -> Json:
    """Of some tokens."""
    number = given.get("top_logprobs", 0) + wrong("one more top")
    content = []
    for token in answer.tokens[first:last]:
        top = [{"token": c, "logprob": p, "bytes": list(c.encode())} for c, p in token.top[:number]]
        if wrong("unsorted"):
            top.reverse()
        entry = {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
        if wrong("wrong bytes"):
            entry["bytes"] = [32]
        if wrong("positive"):
            entry["logprob"] = 0.5
        if wrong("after temperature") and given.get("temperature", 1) > 0:
            for item in top:
                item["logprob"] -= 0.5
        content.append(entry | {"top_logprobs": top})
    if wrong("one logprob less"):
        content = content[:-1]
    if wrong("one logprob more"):
        content += content[-1:] * 2
    return {"content": content, "refusal": None}


def chat_chunks(head: Json, given: Json, found: list[Answer], usage: Json, thought: str) -> Iterator[Json]:
    """The chunks of a stream."""
    head = {**head, "object": "chat.completion" if wrong("chunk object") else "chat.completion.chunk"}
    asked = given.get("stream_options", {}).get("include_usage") and not wrong("no usage")
    extra: Json = {"usage": None} if asked and not wrong("usage left out") else {}

    def chunk(index: int, delta: Json, finish: str | None = None, logprobs: Json | None = None) -> Json:
        if wrong("role in every chunk"):
            delta = {"role": "assistant", **delta}
        if wrong("stray null in delta"):
            delta = {**delta, "tool_calls": None}
        own = {**head, "id": uuid.uuid4().hex} if wrong("id changes") else head
        choice = {
            "index": 0 if wrong("all indexes 0") else index,
            "delta": delta,
            "finish_reason": finish,
            "logprobs": logprobs,
        }
        return {**own, "choices": [choice], **extra}

    for index, _ in enumerate(found):
        if not wrong("no role in stream"):
            yield chunk(index, {"role": "assistant", "content": ""})
    if thought and not wrong("reasoning after content"):
        yield chunk(0, {"reasoning_content": thought[: 5 if wrong("reasoning cut") else None]})
    texts = [answer.text for answer in found]
    if wrong("stream differs"):
        texts = [text.upper() + "!" for text in texts]
    if wrong("characters broken"):
        texts = [text.encode().decode("ascii", "replace") for text in texts]
    if wrong("stop leaks") and given.get("stop"):
        texts = [text + str(given["stop"])[:1] for text in texts]
    steps = [(i, position) for position in range(max(map(len, texts))) for i in range(len(texts))]
    if wrong("one after another"):
        steps.sort()
    for index, position in steps:
        if position < len(texts[index]) and not found[index].calls:
            logprobs = chat_logprobs(found[index], given, position, position + 1) if given.get("logprobs") else None
            if wrong("no logprobs in stream"):
                logprobs = None
            yield chunk(index, {"content": texts[index][position]}, None, logprobs)
    if thought and wrong("reasoning after content"):
        yield chunk(0, {"reasoning_content": thought})
    for index, answer in enumerate(found):
        for number, function in enumerate(answer.calls):
            yield from call_chunks(chunk, index, number, function)
        finish = "content_filter" if wrong("finish differs") else answer.finish
        if not wrong("no finish"):
            yield chunk(index, {}, finish)
        if wrong("two finishes"):
            yield chunk(index, {}, finish)
    if asked or wrong("usage unasked"):
        counts = (
            {**usage, "completion_tokens": usage["completion_tokens"] + 1} if wrong("stream usage off") else usage
        )
        choices = [{"index": 0, "delta": {}, "finish_reason": None}] if wrong("usage with choices") else []
        yield {**head, "choices": choices, "usage": counts}


def call_chunks(chunk: Any, index: int, number: int, function: dict[str, str]) -> Iterator[Json]:
    """A call in pieces."""
    made = tool_call({**function, "arguments": ""})
    yield chunk(index, {"tool_calls": [{"index": number, **made}]})
    text = function["arguments"]
    for i in range(0, len(text), 7):
        piece: Json = {"index": number, "function": {"arguments": text[i : i + 7]}}
        if wrong("name in every delta"):
            piece["function"]["name"] = function["name"]
        if wrong("arguments of a stream differ") and i == 0:
            piece["function"]["arguments"] += " "
        yield chunk(index, {"tool_calls": [piece]})


def stream(request: Request, chunks: Iterable[Json]) -> Response:
    """Chunks as events."""
    names = _faults.get()

    async def events() -> AsyncIterator[bytes]:
        global _running, _abandoned
        _faults.set(names)
        _running += 1
        held, is_done = b"", False
        try:
            for number, chunk in enumerate(chunks):
                data = json.dumps(chunk, ensure_ascii=wrong("ascii"))
                if wrong("raw newline"):
                    data = data.replace('"choices"', '\n"choices"')
                end = "\r\n\n" if wrong("mixed line endings") and number % 2 else "\n\n"
                event = f"data: {data}{end}".encode()
                if wrong("buffered"):
                    held += event
                    await asyncio.sleep(STEP)
                    continue
                await asyncio.sleep(STEP)
                yield event
            if held:
                yield held
            if wrong("lone cr"):
                yield b"data: [DONE]\n"
                return
            for _ in range(0 if wrong("no done") else 2 if wrong("two dones") else 1):
                yield b"data: [DONE]\n\n"
            if wrong("after done"):
                yield b": more\n\n"
            is_done = True
        finally:
            # where it is abandoned this runs in another context
            _running -= "leaks" not in names
            _abandoned += "spoilt" in names and not is_done

    headers = {} if wrong("no cache control") else {"cache-control": "no-cache"}
    kind = "application/octet-stream" if wrong("stream type") else "text/event-stream"
    return StreamingResponse(events(), headers=headers, media_type=kind)


async def complete(request: Request, body: Json) -> Response:
    """POST /v1/completions."""
    if wrong("mixed prompts accepted") and isinstance(body.get("prompt"), list):
        body["prompt"] = [str(p) for p in body["prompt"]] or [""]
    if wrong("ids fold") and isinstance(body.get("prompt"), list):
        body["prompt"] = [p % 100 if isinstance(p, int) else p for p in body["prompt"]]
    if wrong("suffix ignored"):
        body.pop("suffix", None)
    given = fields.check(body, fields.COMPLETION, "prompt", "model")
    prompts = given["prompt"] if isinstance(given["prompt"], list) else [given["prompt"]]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    texts = [p if isinstance(p, str) else "".join(map(chr, p)) for p in prompts]
    if wrong("ids as text"):
        texts = [str(p) for p in prompts]
    limit = given.get("max_tokens", 99 if wrong("no default limit") else 16)
    found = [answer for text in texts for answer in answers(text, given, limit)]
    owners = [text for text in texts for _ in range(given.get("n", 1))]
    if wrong("batch reversed"):
        found.reverse()
    usage = usage_of(sum(map(len, texts)), found)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": given["model"],
    }
    choices = []
    for index, (text, answer) in enumerate(zip(owners, found, strict=True)):
        echo = text if given.get("echo") and not wrong("echo ignored") else ""
        logprobs = text_logprobs(echo, answer, given["logprobs"]) if "logprobs" in given else None
        shown = answer.text
        if wrong("completion stream differs") and given.get("stream"):
            shown += "!"
        choices.append({"index": index, "text": echo + shown, "logprobs": logprobs, "finish_reason": answer.finish})
    if not given.get("stream"):
        await work(request, limit if limit < 50 else 1)
        if wrong("completion object"):
            head["object"] = "completion"
        return JSONResponse({**head, "choices": choices, "usage": usage})

    def chunks() -> Iterator[Json]:
        for choice in choices:
            for character in choice["text"]:
                yield {**head, "choices": [{**choice, "text": character, "logprobs": None, "finish_reason": None}]}
            yield {**head, "choices": [{**choice, "text": "", "logprobs": None}]}
        if given.get("stream_options", {}).get("include_usage"):
            counts = {**usage, "total_tokens": 0} if wrong("stream usage off") else usage
            yield {**head, "choices": [], "usage": counts}

    return stream(request, chunks())


def text_logprobs(echo: str, answer: Answer, number: int) -> Json:
    """The columns of the older API."""
    tokens = [*echo, *(token.text for token in answer.tokens)]
    values = [None if i == 0 and not wrong("first echoed has a value") else -1.0 for i in range(len(echo))]
    tops: list[Any] = [None if value is None else {"a": value} for value in values]
    values += [token.logprob for token in answer.tokens]
    tops += [dict(token.top[:number]) for token in answer.tokens]
    offsets = list(range(len(tokens)))
    if wrong("offsets fall"):
        offsets.reverse()
    if wrong("columns differ"):
        offsets.append(0)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


async def embed(request: Request, body: Json) -> Response:
    """POST /v1/embeddings."""
    given = body.get("input")
    is_good = given != "" and fields.prompt(given)
    if not is_good and not (wrong("any input") and given == []):
        raise BadField("input", "input has a wrong value")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64") and not wrong("any format"):
        raise BadField("encoding_format", "no such format")
    if "dimensions" in body and not wrong("dimensions ignored"):
        raise BadField("dimensions", "this model has 16")
    inputs = given if isinstance(given, list) else [given]
    if inputs and isinstance(inputs[0], int):
        inputs = [[i] for i in inputs] if wrong("ids are inputs") else [inputs]
    texts = [p if isinstance(p, str) else "".join(map(chr, p)) for p in inputs]
    if sum(map(len, texts)) > CONTEXT and not wrong("no limit of length"):
        raise BadField("input", "too long", 400, "context_length_exceeded")
    data = []
    for index, text in enumerate(reversed(texts) if wrong("embeddings reversed") else texts):
        seed = "" if wrong("one vector") else text
        raw = struct.unpack("<16b", hashlib.md5(seed.encode()).digest())
        length = 1.0 if wrong("not normal") else math.hypot(*raw)
        vector: Any = [value / length for value in raw]
        if form == "base64":
            order = ">" if wrong("big endian") else "<"
            vector = base64.b64encode(struct.pack(f"{order}16f", *vector)).decode()
        data.append({"object": "embedding", "index": 0 if wrong("embedding indexes") else index, "embedding": vector})
    spent = len(texts[0]) if wrong("usage of first input") else sum(map(len, texts))
    usage = {"prompt_tokens": spent, "total_tokens": spent + wrong("usage off by one")}
    return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})


async def decide(request: Request, body: Json) -> Response:
    """POST /v1/decisions."""
    from tests.conformance.stub_dialects import decision

    return await decision(request, body)


async def tokenize(request: Request, body: Json) -> Response:
    """POST /tokenize."""
    text = prompt_of(body) if "messages" in body else body["prompt"]
    if wrong("tokens lose characters"):
        text = text.strip()
    tokens = [ord(c) for c in text]
    return JSONResponse({"tokens": tokens, "count": len(tokens) + wrong("count off"), "max_model_len": CONTEXT})


async def detokenize(request: Request, body: Json) -> Response:
    """POST /detokenize."""
    return JSONResponse({"prompt": "".join(map(chr, body["tokens"]))})


async def respond(request: Request, body: Json) -> Response:
    """POST /v1/responses."""
    from tests.conformance.stub_dialects import response

    return await response(request, body, _stored)


async def message(request: Request, body: Json) -> Response:
    """POST /v1/messages."""
    from tests.conformance.stub_dialects import anthropic_message

    return await anthropic_message(request, body)


async def count_tokens(request: Request, body: Json) -> Response:
    """POST /v1/messages/count_tokens."""
    return JSONResponse({"input_tokens": len(prompt_of(body)) + wrong("count off")})


ROUTES = {
    "/v1/chat/completions": chat,
    "/v1/completions": complete,
    "/v1/embeddings": embed,
    "/v1/decisions": decide,
    "/v1/responses": respond,
    "/v1/messages": message,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
