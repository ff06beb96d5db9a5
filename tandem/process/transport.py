"""Where an engine can be reached, and the sockets that reach it.

An engine listens at two addresses: ``requests`` (ROUTER; a client's DEALER connects, and replies are routed by the
client's identity) and ``heartbeats`` (PUB; its heartbeat, for everyone). By default both are Unix sockets in a
directory that only its owner may enter. Over TCP every connection is encrypted and authenticated by CurveZMQ, with
keys made from a secret that engine and clients share; a connection without it never gets to send a frame.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.utils.z85

from tandem.errors import ConfigError

UNIX = "ipc://"
TCP = "tcp://"
MAX_UNIX_PATH = 107  # bytes in ``sockaddr_un``, its final zero left out
MIN_SECRET_LENGTH = 32
PEER_CHECK_MS = 5000  # a peer whose machine or process has stopped is asked for a sign so often,
PEER_SILENCE_MS = 20000  # and given up after so long
RECONNECT_MS = 50
_ROOM_FOR_NAMES = len("/tandem-12345678/requests")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine listens.

    Attributes:
        requests, heartbeats: addresses as ZeroMQ writes them.
        secret: shared by the engine and its clients; needed for TCP, unused on Unix sockets.

    Raises:
        ConfigError: an address is neither a Unix socket's nor TCP, or TCP comes without a secret.
    """

    requests: str
    heartbeats: str
    secret: str = ""

    def __post_init__(self) -> None:
        for address in (self.requests, self.heartbeats):
            _check_security(address, self.secret)

    @classmethod
    def in_directory(cls, directory: Path) -> Endpoint:
        """Unix sockets in a directory that only its owner may enter."""
        return cls(requests=f"{UNIX}{directory}/requests", heartbeats=f"{UNIX}{directory}/heartbeats")

    @classmethod
    def over_tcp(cls, address: str) -> Endpoint:
        """``tcp://HOST:PORT`` for requests, the port after it for heartbeats, and a fresh secret."""
        host, port = check_tcp_address(address)
        return cls(requests=address, heartbeats=f"{TCP}{host}:{port + 1}", secret=secrets.token_hex(32))

    @property
    def directory(self) -> Path | None:
        """Of Unix sockets."""
        return Path(self.requests.removeprefix(UNIX)).parent if self.requests.startswith(UNIX) else None


def check_tcp_address(address: str) -> tuple[str, int]:
    """Host and port of ``tcp://HOST:PORT``.

    Raises:
        ConfigError: it has another form, or no port after it is left for heartbeats.
    """
    host, _, port = address.removeprefix(TCP).rpartition(":")
    if not address.startswith(TCP) or not host or not port.isascii() or not port.isdigit():
        raise ConfigError("--engine-address", f"{address!r} is not of the form {TCP}HOST:PORT")
    if not 1 <= int(port) < 65535:
        raise ConfigError("--engine-address", f"the port must be between 1 and 65534, got {port}")
    return host, int(port)


def _check_security(address: str, secret: str) -> None:
    if not address.startswith((UNIX, TCP)):
        raise ConfigError("--engine-address", f"{address!r} is neither {UNIX}PATH nor {TCP}HOST:PORT")
    if not address.startswith(UNIX) and len(secret) < MIN_SECRET_LENGTH:
        raise ConfigError("--engine-address", "TCP needs a secret that engine and clients share")


def make_socket_directory() -> Path:
    """A new directory (mode 0700) whose path leaves room for the sockets' names.

    Raises:
        ConfigError: no directory for temporary files is short enough and writable.
    """
    for parent in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):
        fits = len(os.fsencode(parent)) + _ROOM_FOR_NAMES <= MAX_UNIX_PATH
        if parent and fits and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="tandem-", dir=parent))
    raise ConfigError(
        "TMPDIR",
        f"Unix sockets need a writable directory with a path of at most {MAX_UNIX_PATH - _ROOM_FOR_NAMES} bytes",
    )


def listen(context: zmq.Context[Any], kind: int, address: str, secret: str) -> zmq.Socket[bytes]:
    """The engine's end of an address.

    Raises:
        ConfigError: it is taken, does not exist, or would be open to everyone.
    """
    _check_security(address, secret)
    socket: zmq.Socket[bytes] = _open(context, kind)
    if secret:
        _, key = _server_keys(secret)
        socket.curve_server = True
        socket.curve_secretkey = key
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(
            "--engine-address", f"cannot listen on {address}: {os.strerror(error.errno or 0)}"
        ) from error
    return socket


def connect(context: zmq.Context[Any], kind: int, address: str, secret: str, identity: str = "") -> Any:
    """A client's end of an address; it connects again by itself, and what is sent before then waits."""
    socket = _open(context, kind)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    if identity:
        socket.setsockopt(zmq.ROUTING_ID, identity.encode())
    if kind == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    if secret:
        socket.curve_serverkey, _ = _server_keys(secret)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.connect(address)
    return socket


def _open(context: zmq.Context[Any], kind: int) -> Any:
    """A socket that never blocks its sender, and by default drops what is unsent when it is closed."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    if kind in (zmq.ROUTER, zmq.DEALER):  # heartbeats may be lost, frames may not
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a client that is gone is an error
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a client that connects again is the same client
        socket.setsockopt(zmq.HEARTBEAT_IVL, PEER_CHECK_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PEER_SILENCE_MS)
    return socket


def _server_keys(secret: str) -> tuple[bytes, bytes]:
    """The engine's public and secret key.

    CurveZMQ never sends the server's public key, and a client that does not know it cannot make the first box of the
    handshake. Here it follows from the shared secret alone, so that knowing it proves the secret.
    """
    key = zmq.utils.z85.encode(hashlib.sha256(b"tandem engine:" + secret.encode()).digest())
    return zmq.curve_public(key), key
