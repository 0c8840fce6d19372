"""The journal: a lab's durable, append-only record of events, which every screen is a reader of.

One SQLite file per lab, in WAL mode, so that `stacklab events -f` reads in one process while `up` writes in
another.

Steps of the work are recorded before and after. That a step passed is read from here, so that a second `up`
goes on where the first one stopped, whatever stopped it.
"""

import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from stacklab.errors import Interrupted, StacklabError
from stacklab.event import Event, rfc3339

STEP_STARTED = "stacklab.step.started"
STEP_PASSED = "stacklab.step.passed"
STEP_FAILED = "stacklab.step.failed"
STEP_INTERRUPTED = "stacklab.step.interrupted"
STEP_FORGOTTEN = "stacklab.step.forgotten"

_APPLICATION_ID = 0x53744C62  # "StLb": tells a journal from any other SQLite file
_VERSION = 1
_DETAIL_LIMIT = 20_000  # characters; the end of a log is what matters
_BUSY_SECONDS = 10.0
# The last when the index of the write-ahead log is made, which a reader needs, too.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    type TEXT NOT NULL,
    source TEXT NOT NULL,
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_key ON event (key, id) WHERE key != '';
CREATE INDEX IF NOT EXISTS event_forgotten ON event (id) WHERE type = '{STEP_FORGOTTEN}';
CREATE TRIGGER IF NOT EXISTS event_is_not_changed BEFORE UPDATE ON event
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS event_is_not_deleted BEFORE DELETE ON event
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_log = logging.getLogger(__name__)


class JournalUnusable(StacklabError):
    """The journal's file cannot be read or written: damaged, not a journal, or the disk is full."""


class Step:
    """A running step; what is noted here goes into the data of the event that ends it."""

    def __init__(self) -> None:
        self.noted: dict[str, Any] = {}

    def note(self, **data: Any) -> None:
        """Add facts, such as `changed=3`, to the event that will end this step."""
        self.noted.update(data)


Listener = Callable[[Event], None]


class Journal:
    """A lab's journal, safe to use from several threads and several processes.

    path: the file. lab: the lab's name in the events' source; by default the name of the file's folder.

    A journal that does not exist yet reads as empty; the first event recorded creates it (mode 0600).
    All methods that touch the file raise JournalUnusable when it is damaged or cannot be written.
    """

    def __init__(self, path: Path, lab: str = "") -> None:
        self.path = path
        self.source = f"/stacklab/labs/{lab or path.absolute().parent.name}"
        self._connection: sqlite3.Connection | None = None
        self._is_immutable = False
        self._listeners: list[Listener] = []
        # One connection behind one lock: events are few and small, and the order in which listeners
        # hear of them is then the order of their ids.
        self._lock = threading.RLock()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The journal opens it again when it is used again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # Writing

    def record(self, type: str, subject: str = "", **data: Any) -> Event:
        """Append one event and tell the listeners; when this returns, a killed process does not lose it.

        data: JSON values; anything else, such as a Path, is written as its str().
        A `key` in the data of a step's event is what `passed` asks for.
        """
        return self._append(type, subject, data)

    @contextmanager
    def step(self, name: str, subject: str = "", key: str = "", **data: Any) -> Iterator[Step]:
        """Record a step of the work: `started` before it; `passed`, `failed` or `interrupted` after it.

        key: names the step for `passed`; empty when it is to be done each time. data: goes into both events.
        The event that ends it carries its `seconds` and, as `step`, the id of its `started` event.
        Exceptions pass through unchanged.
        """
        step = Step()
        about = {"name": name} | ({"key": key} if key else {}) | data
        started = self._append(STEP_STARTED, subject, about)
        begin = time.monotonic()

        def end(type: str, **ending: Any) -> None:
            known = {"step": started.id, "seconds": round(time.monotonic() - begin, 3)}
            self._append(type, subject, about | step.noted | known | ending)

        try:
            yield step
        except Exception as error:
            interrupted = isinstance(error, Interrupted)
            # A full disk fails the step and the journal alike; the step's own error is the one to show.
            with suppress(JournalUnusable):
                end(STEP_INTERRUPTED if interrupted else STEP_FAILED, **_describe(error))
            raise
        except BaseException as error:  # Ctrl-C, SystemExit: the work did not fail, it was stopped
            with suppress(JournalUnusable):
                end(STEP_INTERRUPTED, error=type(error).__name__)
            raise
        end(STEP_PASSED)

    def forget(self, prefix: str) -> None:
        """From here on, no step whose key begins with `prefix` counts as passed; "" forgets all."""
        # The one event that must also survive a power cut: without it, undone work would count as done.
        self._append(STEP_FORGOTTEN, "", {"key": prefix}, sync=True)

    def _append(self, type: str, subject: str, data: dict[str, Any], *, sync: bool = False) -> Event:
        text = json.dumps(data, default=str, ensure_ascii=False)
        now = datetime.now(UTC)
        key = str(data.get("key") or "")
        with self._lock:
            with self._explained("written"):
                connection = self._open(create=True)
                assert connection is not None
                if sync:
                    connection.execute("PRAGMA synchronous = FULL")
                cursor = connection.execute(
                    "INSERT INTO event (time, type, source, subject, key, data) VALUES (?, ?, ?, ?, ?, ?)",
                    (rfc3339(now), type, self.source, subject, key, text),
                )
                if sync:
                    connection.execute("PRAGMA synchronous = NORMAL")
                assert cursor.lastrowid is not None
            event = Event(cursor.lastrowid, now, type, self.source, subject, json.loads(text))
            for listener in list(self._listeners):
                try:
                    listener(event)
                except BrokenPipeError:  # nobody reads that screen any more, as with `| head`
                    self._listeners.remove(listener)
                except Exception:  # a broken screen must not stop the work
                    _log.exception("a listener of the journal failed and is not called again")
                    self._listeners.remove(listener)
        return event

    # Reading

    def passed(self, key: str) -> bool:
        """Whether the newest word on the step with this key is that it passed, not forgotten since."""
        if not key:
            return False
        with self._lock, self._explained("read"):
            connection = self._open()
            if connection is None:
                return False
            row = connection.execute(
                "SELECT type, id FROM event WHERE key = ? AND key != '' AND type IN (?, ?, ?, ?)"
                " ORDER BY id DESC LIMIT 1",
                (key, STEP_STARTED, STEP_PASSED, STEP_FAILED, STEP_INTERRUPTED),
            ).fetchone()
            if row is None or row[0] != STEP_PASSED:
                return False
            forgotten = connection.execute(
                f"SELECT 1 FROM event WHERE type = '{STEP_FORGOTTEN}' AND id > ?"
                " AND substr(?, 1, length(key)) = key LIMIT 1",
                (row[1], key),
            ).fetchone()
            return forgotten is None

    def read(self, after: int = 0) -> list[Event]:
        """The events with an id above `after`, oldest first."""
        with self._lock, self._explained("read"):
            connection = self._open()
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT id, time, type, source, subject, data FROM event WHERE id > ? ORDER BY id", (after,)
            ).fetchall()
            return [
                Event(number, datetime.fromisoformat(when), kind, source, subject, json.loads(data))
                for number, when, kind, source, subject, data in rows
            ]

    def newest(self) -> int:
        """The id of the newest event, 0 when there is none; `read(after=newest())` gives what comes later."""
        with self._lock, self._explained("read"):
            connection = self._open()
            if connection is None:
                return 0
            return int(connection.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0])

    def follow(
        self, after: int = 0, poll: float = 0.2, *, until: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """The events above `after`, then each new one as it comes, from whichever process.

        poll: seconds between looks. Ends when `until()` is true (all that was recorded before is still given)
        or when the file is gone, as after `destroy`.
        """
        identity = _identity(self.path)
        while True:
            last = until()
            for event in self.read(after):
                after = event.id
                yield event
            here = _identity(self.path)
            if last or (identity is not None and here != identity):
                return
            identity = here
            time.sleep(poll)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event that this object records from now on; returns what ends that.

        It is called in the recording thread, in the order of the ids, and must be quick. One that raises is
        dropped.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock, suppress(ValueError):
                self._listeners.remove(listener)

        return unsubscribe

    # The file

    def _open(self, *, create: bool = False) -> sqlite3.Connection | None:
        """The connection; None when there is no journal yet and `create` is not asked for."""
        if self._connection is not None and not self._is_immutable:
            return self._connection
        self.close()
        if create:
            # O_EXCL, because to open and close a file that SQLite has open would drop SQLite's POSIX locks.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        elif not self.path.exists() or self.path.stat().st_size == 0:
            return None
        try:
            connection = self._connect("mode=rw")
        except sqlite3.OperationalError as error:
            # On a full disk, what nobody writes can still be read: all of it is in the file itself.
            if create or error.sqlite_errorcode not in _FULL or self._has_log():
                raise
            self._connection, self._is_immutable = self._connect("immutable=1"), True
            return self._connection
        self._connection, self._is_immutable = connection, False
        weakref.finalize(self, connection.close)  # of one that nobody closes, as Python 3.13 warns of those
        return connection

    def _connect(self, how: str) -> sqlite3.Connection:
        """A connection, opened as https://sqlite.org/uri.html says."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{how}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _has_log(self) -> bool:
        log = self.path.with_name(f"{self.path.name}-wal")
        return log.exists() and log.stat().st_size > 0

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Tables first: another process may make them, and the id with them, between two of these lines.
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        ours = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if tables and ours != _APPLICATION_ID:
            raise JournalUnusable(f"{self.path} is a SQLite file, but not a journal of stacklab")
        if version > _VERSION:
            raise JournalUnusable(
                f"{self.path} was written by a newer stacklab: version {version}, this one knows {_VERSION}"
            )
        # NORMAL: a commit survives a killed process; a power cut may take the last ones, but never damages
        # the file. A lost `passed` only means that an idempotent step is done again, and an fsync per event,
        # up to 10 ms on a slow disk, would cost `up` seconds. Only `forget` pays for one.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            _write_ahead(connection)
            connection.executescript(_SCHEMA)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn SQLite's errors into one that says which file, and what to do."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a row without JSON or a time
            if getattr(error, "sqlite_errorcode", None) in _FULL:
                raise JournalUnusable(
                    f"the journal {self.path} cannot be {verb}: the disk is full",
                    hint="df -h shows which disk; make room and run the same command again",
                ) from error
            if isinstance(error, OSError | sqlite3.OperationalError) and not _is_damage(error):
                raise JournalUnusable(f"the journal {self.path} cannot be {verb}: {error}") from error
            self.close()
            raise JournalUnusable(
                f"the journal {self.path} is damaged: {error}",
                hint=f"mv {self.path} {self.path}.damaged, then `stacklab up` again: it does every step anew",
            ) from error


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn a new file to WAL; another process may do so just now, and SQLite does not wait for it here."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _describe(error: Exception) -> dict[str, str]:
    if isinstance(error, StacklabError):
        parts = {"error": error.message, "detail": error.detail[-_DETAIL_LIMIT:], "hint": error.hint}
        return {name: text for name, text in parts.items() if text}
    return {"error": f"{type(error).__name__}: {error}"}


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    # SQLITE_ERROR is "no such table" or column here: the statements are fixed, so the file is at fault.
    damage = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return code is not None and code & 0xFF in damage


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
