"""Where files lie: a directory that only its owner may read, bounded in files and bytes.

A file's bytes are in ``ID.data``; what is known of it is in ``ID.json``, which is written last, and taken away first.
It belongs to an owner, the hash of the API key that brought it, and is found by no other. Methods that write wait for
a disk: call them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from server.errors import ApiError
from server.responses.store import Page
from tandem.errors import ConfigError, RequestError

OPTION = "--files-dir"
DAY = 86400
PARTIAL = ".part"
CONTINUED = "batch_"  # begins the names of drafts that a later server continues
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """``file_bytes`` of a file; ``files`` and ``bytes`` of all together, those being written included."""

    file_bytes: int = 200 * 2**20
    files: int = 10_000
    bytes: int = 4 * 2**30


class File(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file. Times are Unix times, in seconds; ``order`` is finer."""

    id: str
    owner: str
    order: int
    bytes: int
    filename: str
    purpose: str
    expires_at: int

    @property
    def wire(self) -> dict[str, Any]:
        """``FileObject`` of OpenAI's published API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.order // 10**9,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": self.expires_at,
        }


class FileStore:
    """All files.

    Args:
        directory: made with mode 0700; None means one that is deleted at the end.
        clock: Unix time, in seconds.

    Raises:
        ConfigError: the directory cannot be used, or another server uses it.
    """

    def __init__(
        self,
        directory: str | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits or Limits()
        self.is_lasting = directory is not None
        self.clock = clock
        self._lock = threading.RLock()
        self._files: dict[str, File] = {}
        self._drafts: dict[str, Draft] = {}
        self._num_bytes = 0
        self._last_order = 0
        self._directory: Path | None = None
        self._guard: BinaryIO | None = None
        if directory is not None:
            try:
                self._open(Path(directory))
            except (OSError, msgspec.MsgspecError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise ConfigError(OPTION, f"{directory} cannot be used: {why}") from error

    @property
    def directory(self) -> Path:
        """Where the files lie. A temporary one is made when it is first asked for."""
        with self._lock:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="tandem-files-"))
            return self._directory

    def close(self) -> None:
        """Delete a temporary directory, or let go of one that stays; idempotent."""
        for draft in list(self._drafts.values()):  # not under the lock: one that is being written asks for it
            draft.close()
        with self._lock:
            if self._guard is not None:
                self._guard.close()
            if not self.is_lasting and self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    def next_order(self) -> int:
        """The time in nanoseconds, later than every one before."""
        with self._lock:
            self._last_order = max(int(self.clock() * 10**9), self._last_order + 1)
            return self._last_order

    # ------------------------------------------------------------------ files

    def draft(self, owner: str, name: str | None = None) -> Draft:
        """A file to be written.

        Args:
            name: of the draft, by which a later server finds what was written; None for one that nobody continues.

        Raises:
            ApiError: 413, there are too many files.
        """
        with self._lock:
            self._remove_expired()
            if len(self._files) + len(self._drafts) >= self.limits.files:
                raise _full(f"it has {self.limits.files} files")
            draft = Draft(self, owner, self.directory / f"{name or uuid.uuid4().hex}{PARTIAL}")
            self._drafts[draft.path.name] = draft
            return draft

    def find(self, owner: str, file_id: str, param: str = "id") -> File:
        """Raise ``ApiError`` 404 if there is no such file, or it is someone else's."""
        file = self._files.get(file_id)
        if file is None or file.owner != owner or file.expires_at <= self.clock():
            raise ApiError(404, f"No such File object: {file_id[:100]}", "file_not_found", param)
        return file

    def path(self, file: File) -> Path:
        """Of a file's bytes."""
        return self.directory / f"{file.id}.data"

    def page(self, owner: str, limit: int, newest_first: bool, after: str | None, purpose: str | None) -> Page:
        """A part of an owner's files. Raises ``RequestError`` if there is no file ``after``."""
        now = self.clock()
        with self._lock:
            files = [f for f in self._files.values() if f.owner == owner and f.expires_at > now]
        own = sorted(files, key=lambda file: file.order, reverse=newest_first)
        start = after_index([file.id for file in own], after)
        rest = [file.wire for file in own[start:] if purpose is None or file.purpose == purpose]
        return Page(rest[:limit], len(rest) > limit)

    def delete(self, owner: str, file_id: str) -> None:
        """Raises as ``find``."""
        with self._lock:
            self._remove(self.find(owner, file_id))

    # ------------------------------------------------------------------ within

    def _open(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        guard = open(directory / "lock", "wb")  # noqa: SIM115 - held for as long as the server lives
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            guard.close()
            raise OSError(error.errno, "another server uses it") from error
        self._directory, self._guard = directory, guard
        for path in directory.glob("file-*.json"):
            file = msgspec.json.decode(path.read_bytes(), type=File)
            self._files[file.id] = file
            self._num_bytes += file.bytes
            self._last_order = max(self._last_order, file.order)
        for path in directory.glob("file-*.data"):
            if path.stem not in self._files:
                path.unlink()
        for path in directory.glob(f"*{PARTIAL}"):
            if not path.name.startswith(CONTINUED):
                path.unlink()
        self._remove_expired()

    def _remove_expired(self) -> None:
        now = self.clock()
        for file in [file for file in self._files.values() if file.expires_at <= now]:
            self._remove(file)

    def _remove(self, file: File) -> None:
        (self.directory / f"{file.id}.json").unlink(missing_ok=True)
        self.path(file).unlink(missing_ok=True)
        del self._files[file.id]
        self._num_bytes -= file.bytes

    def _grow(self, size: int) -> None:
        with self._lock:
            if size > 0 and self._num_bytes + size > self.limits.bytes:
                self._remove_expired()
                if self._num_bytes + size > self.limits.bytes:
                    raise _full(f"its files have {self.limits.bytes} bytes")
            self._num_bytes += size

    def _keep(self, draft: Draft, filename: str, purpose: str, seconds: int) -> File:
        with self._lock:
            order = self.next_order()
            file = File(
                id=f"file-{uuid.uuid4().hex}",
                owner=draft.owner,
                order=order,
                bytes=draft.size,
                filename=filename,
                purpose=purpose,
                expires_at=order // 10**9 + seconds,
            )
            os.replace(draft.path, self.path(file))
            write_whole(self.directory / f"{file.id}.json", msgspec.json.encode(file))
            self._files[file.id] = file
            self._drafts.pop(draft.path.name, None)
            return file

    def _forget(self, draft: Draft) -> None:
        with self._lock:
            if self._drafts.pop(draft.path.name, None) is not None:
                self._grow(-draft.size)


class Draft:
    """A file while it is written. Whoever has it keeps or discards it.

    Attributes:
        size: bytes written, those of an earlier server's draft of the same name included.
    """

    def __init__(self, store: FileStore, owner: str, path: Path) -> None:
        self.owner = owner
        self.path = path
        self.size = 0
        self._store = store
        self._lock = threading.Lock()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        found = os.fstat(descriptor).st_size
        store._grow(found)
        self.size = found

    def write(self, data: bytes | bytearray, is_bounded: bool = True) -> None:
        """Append bytes. Nothing is written any more once the draft has been closed.

        Raises:
            ApiError: 413, it is more than a file, or all of them, may have.
        """
        with self._lock:
            if self._file.closed:
                return
            limit = self._store.limits.file_bytes
            if is_bounded and self.size + len(data) > limit:
                raise ApiError(413, f"a file has at most {limit} bytes", "request_too_large", "file")
            self._store._grow(len(data))
            self.size += len(data)
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                raise _full(str(error.strerror)) from error

    def keep(self, filename: str, purpose: str, seconds: int) -> File:
        """Make it a file that expires after so many seconds."""
        self.close()
        return self._store._keep(self, filename, purpose, seconds)

    def discard(self) -> None:
        """Delete it, unless it has been kept; idempotent."""
        self.close()
        self._store._forget(self)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write no more, and leave it where it is; idempotent."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()


def after_index(ids: list[str], after: str | None) -> int:
    """Where a list goes on. Raises ``RequestError`` if ``after`` is not in it."""
    if after is None:
        return 0
    if after not in ids:
        raise RequestError(f"there is no object {after[:100]!r}", "after", "object_not_found")
    return ids.index(after) + 1


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's contents, all or nothing."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(draft, path)


def _full(why: str) -> ApiError:
    return ApiError(413, f"the server keeps no further bytes: {why}; delete some", "file_storage_full", "file")
