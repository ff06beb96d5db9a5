"""A real server in a process of its own, and raw connections to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "tandem.cli", "serve")
START_SECONDS = 60.0
# ends when the context is full, seconds later
ENDLESS: dict[str, Any] = {"prompt": "the quick", "max_tokens": 4000, "ignore_eos": True, "seed": 1}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3900, "ignore_eos": True}


class ServerProcess:
    """``tandem serve`` on a port that the system picks; its log is kept."""

    def __init__(
        self,
        model: Path | str,
        *options: str,
        wait: bool = True,
        command: Sequence[str] = SERVE,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*command, str(model), "--host", "127.0.0.1", "--port", "0", *options],
            cwd=cwd,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # threads of tiny operations wait for each other far longer than they work, on a busy machine above all
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        try:
            self.wait_for_line(r"running on", START_SECONDS)
            self.url = re.search(r"running on (http\S+)", self.log)[1] if "running on http" in self.log else ""
            if wait:
                self.wait_healthy()
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def worker(self) -> psutil.Process:
        """The engine's process."""
        (child,) = [p for p in psutil.Process(self.process.pid).children() if "tandem.process.worker" in p.cmdline()]
        return child

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait_for_line(self, pattern: str, seconds: float = 10.0) -> None:
        def found() -> bool:
            assert self.process.poll() is None or re.search(pattern, self.log), self.log
            return bool(re.search(pattern, self.log))

        eventually(found, seconds)

    def wait_healthy(self, seconds: float = START_SECONDS) -> None:
        eventually(lambda: self.health()[0] == 200, seconds)

    def health(self) -> tuple[int, str]:
        answer = httpx.get(self.url + "/health", timeout=5)
        return answer.status_code, answer.json()["status"]

    def load(self) -> dict[str, int]:
        return httpx.get(self.url + "/load", timeout=5).json()

    def metric(self, name: str) -> float:
        """The value of a series of ``/metrics`` that has one sample."""
        text = httpx.get(self.url + "/metrics", timeout=5).text
        found = re.search(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def is_idle(self) -> bool:
        load = self.load()
        others = ("num_requests_running", "num_requests_waiting", "num_requests_unfinished")
        return load["server_load"] == 0 and not any(load[name] for name in others)

    def is_idle_without_engine(self) -> bool:
        """As ``is_idle``, when the engine can no longer say what it has dropped."""
        load = self.load()
        return load["server_load"] == 0 and load["num_requests_unfinished"] == 0

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(20)
        finally:
            self.kill()
        return status

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.lines.extend(line.rstrip("\n") for line in iter(stream.readline, ""))


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for ``condition``; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def connect(server: ServerProcess, path: str, body: Any) -> socket.socket:
    """Send a POST and return the open connection, whatever becomes of the answer."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    send(connection, path, body)
    return connection


def send(connection: socket.socket, path: str, body: Any) -> None:
    """A POST as it is on the wire."""
    data = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "host: test",
        "content-type: application/json",
        f"content-length: {len(data)}",
    )
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


def raw(server: ServerProcess, data: bytes) -> bytes:
    """Send bytes, shut down nothing, and read until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
            if parts[-1].endswith(b"0\r\n\r\n"):
                break
    except TimeoutError:
        pass
    return b"".join(parts)


def events(text: str) -> list[Any]:
    """The data of server-sent events; ``[DONE]`` stays text."""
    assert text.endswith("\n\n"), text[-200:]
    blocks = text[:-2].split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Open:
    """A request on its way in a thread of its own."""

    def __init__(self, server: ServerProcess, path: str, body: dict[str, Any]) -> None:
        self.status = 0
        self.text = ""
        self.started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server.url + path, body), daemon=True)
        self._thread.start()

    def _run(self, url: str, body: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.TransportError), httpx.stream("POST", url, json=body, timeout=60) as answer:
            self.status = answer.status_code
            for part in answer.iter_text():
                self.text += part
                self.started.set()

    def wait(self, seconds: float = 30) -> Open:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "still open"
        return self
