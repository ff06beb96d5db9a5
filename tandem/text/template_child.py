"""The process that compiles and renders chat templates, one at a time, for the process that started it.

It is run as a file, never imported, and needs Jinja, msgspec and the standard library alone. Standard input is a
stream socket; each frame on it is a length (4 bytes, big-endian) and a JSON object, jobs in and replies out:

    job    {"source": the template, "context": its variables or null to compile only, "seconds": s, "chars": n}
    reply  {"text": the rendered prompt, "error": null | "compile" | "render" | "chars" | "memory",
            "reason": one line, "last": whether the process now ends}

An empty reply says that the process is ready for its first job. It ends when the socket does.

What a template may take is limited by the kernel: memory by a resource limit, time by an alarm that ends the process
(its parent has an earlier deadline; the alarm is for a process whose parent is gone). Jinja's sandbox stands behind.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

LENGTH = struct.Struct(">I")
ALARM_SECONDS = 1.0  # after the parent's deadline
MAX_REASON_CHARS = 500


class Reply(msgspec.Struct):
    text: str = ""
    error: str | None = None
    reason: str = ""
    last: bool = False


class OutputTooLong(Exception):
    """The template has written more characters than it may."""


def main() -> None:
    """Answer jobs until the socket is closed."""
    memory_bytes = int(sys.argv[1])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    memory_bytes = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with socket.socket(fileno=0) as connection, connection.makefile("rb") as jobs:
        _send(connection, b"")
        while header := jobs.read(LENGTH.size):
            reply = _work(jobs.read(LENGTH.unpack(header)[0]))
            # what one template leaves behind must not count against the next
            reply.last = reply.error == "memory" or _data_bytes() > memory_bytes // 4
            _send(connection, msgspec.json.encode(reply))
            if reply.last:
                return


def _send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(LENGTH.pack(len(payload)))
    connection.sendall(payload)


def _work(frame: bytes) -> Reply:
    try:
        job = msgspec.json.decode(frame)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"] + ALARM_SECONDS)
        return _answer(job)
    except MemoryError:
        return Reply(error="memory")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(job: Mapping[str, Any]) -> Reply:
    step = "compile"
    try:
        template = _compile(job["source"])
        step = "render"
        text = "" if job["context"] is None else _render(template, job["context"], job["chars"])
    except MemoryError:
        raise
    except OutputTooLong:
        return Reply(error="chars")
    except Exception as error:  # whatever a template can run into, with messages it was not written for
        return Reply(error=step, reason=_reason(error))
    return Reply(text)


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _render(template: jinja2.Template, context: dict[str, Any], max_chars: int) -> str:
    parts, size = [], 0
    for part in template.generate(context):
        size += len(part)
        if size > max_chars:
            raise OutputTooLong
        parts.append(part)
    text = "".join(parts)
    text.encode()  # a lone surrogate is an error of the template, not of the reply
    return text


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    line = getattr(error, "lineno", None)
    reason = first[:MAX_REASON_CHARS] + (f" (line {line})" if line else "")
    return reason.encode(errors="replace").decode()


def _data_bytes() -> int:
    """Bytes that the memory limit counts; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks answers for training; here it is only its contents."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates on the hub rely on, beside the variables of their context."""
    extensions = [_GenerationTag, jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is written in prompts: unlike Jinja's own filter, nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()
