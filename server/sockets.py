"""The listening socket, opened before anything slow begins."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat

from server.config import ServerConfig
from tandem.errors import ConfigError

BACKLOG = 2048


def open_listener(config: ServerConfig) -> socket.socket:
    """Bind and listen where the configuration says.

    Raises:
        ConfigError: the address is taken, unknown or not allowed.
    """
    return _unix(config.uds) if config.uds else _tcp(config.host, config.port)


def address(config: ServerConfig, listener: socket.socket) -> str:
    """The listener's address as a URL; for a Unix socket ``unix:`` and its path."""
    if config.uds:
        return f"unix:{config.uds}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines may reach the listener."""
    if listener.family == socket.AF_UNIX:
        return False
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def remove_unix_socket(config: ServerConfig) -> None:
    """Take the socket's file away, if there is one."""
    if config.uds:
        with contextlib.suppress(OSError):
            os.unlink(config.uds)


def _tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError("--host", f"{host} is not an address of this machine") from error
    family, kind, protocol, _, where = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError("--host", f"{host} is not an address of this machine") from error
        if error.errno == errno.EADDRINUSE:
            raise ConfigError("--port", f"{port} is already in use; choose another, or 0 for any") from error
        raise ConfigError("--port", f"cannot listen on {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # owner only, from the moment the file exists
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError("--uds", f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that is gone; leave everything else alone, so that binding fails."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
