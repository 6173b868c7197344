"""What this node sends, on disk. Every method is one job of the database's writer.

On disk a message is `queued` until it comes to one of the ends; how far it is in between only
:class:`meshproto.core.outbox.Outbox` knows. A message that has ended is kept for a while, so that its sender can ask
what became of it, and so that its id, sent again, is not a new message.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX
from meshproto.core.queue import Message, Status
from meshproto.errors import IdReused, MeshError, NotFound, Unavailable
from meshproto.net.store import RETRY_S, Database, Job

SCHEMA: Final = """
CREATE TABLE outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
    recipient TEXT NOT NULL,                -- folded
    id TEXT NOT NULL,
    name TEXT NOT NULL,                     -- the recipient as the sender wrote it: NAME or NAME~FINGERPRINT
    type TEXT NOT NULL,
    message BLOB NOT NULL,                  -- JSON
    sent_at INTEGER NOT NULL,               -- ms since 1970 UTC
    expires_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    reason TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,     -- which acceptance wrote it
    UNIQUE (id, recipient)                  -- the id first: `GET /outbox/ID` names no recipient
);
CREATE INDEX outbox_waiting ON outbox (recipient, row) WHERE status = 'queued';
CREATE INDEX outbox_queued ON outbox (row) WHERE status = 'queued';
CREATE INDEX outbox_expiring ON outbox (expires_at) WHERE status = 'queued'
"""
FROM_1: Final = """
ALTER TABLE outbox ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
CREATE INDEX outbox_queued ON outbox (row) WHERE status = 'queued';
CREATE INDEX outbox_expiring ON outbox (expires_at) WHERE status = 'queued'
"""

OVERDUE_MAX: Final = 1000
"""Messages that end in one job: nobody else writes in the meantime."""
PRUNE_ROWS: Final = 500
"""Messages looked at in one job when old ones are deleted: some milliseconds."""
PRUNE_BYTES: Final = 4 * 1024 * 1024
"""Texts of messages looked at in one such job: to delete a large one takes as long as it is."""
LOOK_ROWS: Final = 5000
"""Messages looked at for one page: some ten milliseconds, in which nobody else reads or writes."""
UNSURE_MAX: Final = 100_000
"""Acceptances that failed and have to be undone, should the disk have taken them after all."""

_MESSAGE: Final = "row, id, name, type, message, sent_at, expires_at"
_KEPT: Final = "row, recipient, id, name, status, sent_at, expires_at, changed_at, reason"


T = TypeVar("T")


class _Attempt(NamedTuple):
    """To accept a message. The same message may be asked for again at once, or the job may run twice: the number tells
    the attempts apart."""

    recipient: str
    id: str
    number: int


class Draft(Struct, frozen=True):
    """A message to be accepted; see :class:`meshproto.core.queue.Message`. `recipient` is the folded name, without a
    fingerprint."""

    recipient: str
    id: str
    to: str
    type: str
    message: bytes
    sent_at: int
    expires_at: int


class Accepted(NamedTuple):
    """`fresh`: it was not there before. A message sent again is what it was, with the status it has now."""

    message: Message
    fresh: bool
    status: Status
    reason: str | None


Verdict = Accepted | MeshError
"""What came of a draft: :class:`IdReused`, or :class:`Unavailable`, or it was accepted."""


class Kept(Struct, frozen=True):
    """One message of the outbox, as it stands on disk."""

    row: int
    recipient: str
    id: str
    to: str
    status: Status
    sent_at: int
    expires_at: int
    changed_at: int
    reason: str | None


class Page(NamedTuple):
    """`next`: where to go on; None: there is no more."""

    messages: list[Kept]
    next: int | None


class Waiting(NamedTuple):
    """Of one recipient; `last_row`: the highest."""

    recipient: str
    to: str
    messages: int
    oldest_at: int
    last_row: int


class Pruned(NamedTuple):
    """`next`: the row to go on after, None at the end."""

    deleted: int
    next: int | None


class Place(NamedTuple):
    """Among what expires, in order; ms since 1970 UTC."""

    expires_at: int
    row: int


FIRST: Final = Place(0, 0)


class Overdue(NamedTuple):
    """Recipients with rows whose time is over; where there is more of it, if there is; and when the next one's time is,
    ms since 1970 UTC."""

    rows: dict[str, list[int]]
    more: Place | None
    next_at: int | None


class OutboxTable:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._unsure: set[_Attempt] = set()
        self._numbers = count(secrets.randbits(62))  # from elsewhere after each start

    @property
    def problem(self) -> str | None:
        """Why the disk does not take anything, while it does not."""
        return self._database.problem

    def accept(self, drafts: Sequence[Draft]) -> Deferred[list[Verdict]]:
        """Keep messages, in this order. The same id for the same recipient is the same message, and
        :class:`IdReused` when it has another text or type, or is for another key."""
        numbers = [next(self._numbers) for _ in drafts]

        def attempts() -> list[_Attempt]:
            return [_Attempt(draft.recipient, draft.id, number) for draft, number in zip(drafts, numbers, strict=True)]

        def job(connection: sqlite3.Connection) -> list[Verdict]:
            return _accept(connection, drafts, numbers)

        def check(taken: list[Verdict]) -> list[Verdict]:
            unsure = {(attempt.recipient, attempt.id) for attempt in self._unsure}
            return [
                Unavailable(f"the message {draft.id!r} is being undone: send it again", retry_after_s=RETRY_S)
                if isinstance(one, Accepted) and not one.fresh and (draft.recipient, draft.id) in unsure
                else one
                for draft, one in zip(drafts, taken, strict=True)
            ]

        return self._undoing(job, attempts, durable=True, check=check)

    def _undoing(
        self,
        job: Job[T],
        attempts: Callable[[], Sequence[_Attempt]] = list,
        *,
        durable: bool = False,
        check: Callable[[T], T] | None = None,
    ) -> Deferred[T]:
        """A disk that fails in the middle of a commit may have taken it. Whoever asked is told that nothing was kept,
        so nothing must be: when the job fails, the next one that goes through here, as all do that show or send what
        there is, first undoes its attempts. `check`: what is told instead, while some are still to be undone."""
        undone, self._unsure = self._unsure, set()

        def both(connection: sqlite3.Connection) -> T:
            connection.executemany(
                "DELETE FROM outbox WHERE recipient=? AND id=? AND attempt=? AND status='queued'", undone
            )
            return job(connection)

        def told(result: T) -> T:
            return check(result) if check is not None and self._unsure else result

        def failed(failure: Failure) -> Failure:
            self._unsure |= undone
            if failure.check(Unavailable) and len(self._unsure) < UNSURE_MAX:
                self._unsure.update(attempts())
            return failure

        return self._database.submit(both if undone else job, durable=durable).addCallbacks(told, failed)

    def _reading(self, job: Job[T]) -> Deferred[T]:
        """The same for who only reads, whom a disk that takes nothing answers too: what could not be synced it shows to
        nobody, and what it did not take is not there."""
        return self._undoing(job) if self.problem is None else self._database.submit(job, durable=False)

    def prune(self, after: int, ended_before_ms: int) -> Deferred[Pruned]:
        """Delete messages that ended before, among the next :data:`PRUNE_ROWS` after the row."""

        def job(connection: sqlite3.Connection) -> Pruned:
            rows = connection.execute(
                "SELECT row, length(message), status!='queued' AND changed_at<?, sent_at FROM outbox "
                "WHERE row>? ORDER BY row LIMIT ?",
                (ended_before_ms, after, PRUNE_ROWS),
            ).fetchall()
            some = within_bytes(rows, PRUNE_BYTES)
            gone = [(row,) for row, _, over, _ in some if over]
            connection.executemany("DELETE FROM outbox WHERE row=?", gone)
            # Nothing that was accepted later can have ended before.
            more = len(some) < len(rows) or len(rows) == PRUNE_ROWS
            return Pruned(len(gone), int(some[-1][0]) if more and some[-1][3] < ended_before_ms else None)

        return self._database.submit(job, durable=False)

    def finish(self, rows: Sequence[int], status: Status, reason: str | None, now_ms: int) -> Deferred[None]:
        """Messages have come to an end; one that had already stays as it is. Not synced: when the power fails they are
        sent again, and the recipients know their ids."""
        update = "UPDATE outbox SET status=?, reason=?, changed_at=? WHERE status='queued' AND row"

        def job(connection: sqlite3.Connection) -> None:
            end = (status.value, reason, now_ms)
            if _is_run(rows):
                connection.execute(f"{update} BETWEEN ? AND ?", (*end, rows[0], rows[-1]))
            else:
                connection.executemany(f"{update}=?", [(*end, row) for row in rows])

        return self._database.submit(job, durable=False)

    def waiting_after(self, recipient: str, row: int) -> Deferred[list[Message]]:
        """The next waiting messages for the recipient: at most a batch."""

        def job(connection: sqlite3.Connection) -> list[Message]:
            found: list[Message] = []
            size = 0
            for values in connection.execute(
                f"SELECT {_MESSAGE} FROM outbox WHERE recipient=? AND row>? AND status='queued' ORDER BY row LIMIT ?",  # noqa: S608
                (recipient, row, BATCH_MESSAGES_MAX),
            ):
                message = Message(*values)
                size += len(message.message)
                if found and size > BATCH_BYTES_MAX:
                    break
                found.append(message)
            return found

        return self._reading(job)

    def overdue(self, now_ms: int, after: Place) -> Deferred[Overdue]:
        """Waiting messages whose time is over, at most :data:`OVERDUE_MAX` after that place."""

        def job(connection: sqlite3.Connection) -> Overdue:
            found = connection.execute(
                "SELECT recipient, expires_at, row FROM outbox WHERE status='queued' AND expires_at<=? "
                "AND (expires_at, row) > (?,?) ORDER BY expires_at, row LIMIT ?",
                (now_ms, *after, OVERDUE_MAX),
            ).fetchall()
            rows: dict[str, list[int]] = {}
            for recipient, _, row in found:
                rows.setdefault(recipient, []).append(row)
            (next_at,) = connection.execute(
                "SELECT min(expires_at) FROM outbox WHERE status='queued' AND expires_at>?", (now_ms,)
            ).fetchone()
            return Overdue(rows, Place(*found[-1][1:]) if len(found) == OVERDUE_MAX else None, next_at)

        return self._undoing(job)

    # -- to look at ----------------------------------------------------------------------------------------------

    def page(self, status: Status | None, recipient: str | None, after: int | None, limit: int) -> Deferred[Page]:
        """At most `limit` messages beyond the row `after`: those that wait (:attr:`Status.QUEUED`) oldest first,
        others, or all (None), newest first. For these at most :data:`LOOK_ROWS` rows are looked at."""
        waits = status is Status.QUEUED

        def waiting(connection: sqlite3.Connection) -> Page:
            index, whose, values = (
                ("outbox_queued", "", ()) if recipient is None else ("outbox_waiting", "AND recipient=? ", (recipient,))
            )
            which = f"INDEXED BY {index} WHERE status='queued' {whose}AND row>? ORDER BY row LIMIT ?"
            found = _kept(connection, which, (*values, after or 0, limit))
            return Page(found, found[-1].row if len(found) == limit else None)

        def others(connection: sqlite3.Connection) -> Page:
            before = _last_row(connection) + 1 if after is None else after
            end = connection.execute(
                "SELECT row FROM outbox WHERE row<? ORDER BY row DESC LIMIT 1 OFFSET ?", (before, LOOK_ROWS - 1)
            ).fetchone()
            found = _kept(
                connection,
                "WHERE row<? AND row>=? AND status=coalesce(?, status) AND recipient=coalesce(?, recipient) "
                "ORDER BY row DESC LIMIT ?",
                (before, end[0] if end else 0, status, recipient, limit),
            )
            if len(found) == limit:
                return Page(found, found[-1].row)
            return Page(found, end[0] if end else None)

        return self._reading(waiting if waits else others)

    def by_rows(self, rows: Sequence[int]) -> Deferred[list[Kept]]:
        """Those that are still kept, in the order of acceptance; some hundreds at most."""
        which = f"WHERE row IN ({','.join('?' * len(rows))}) ORDER BY row"
        return self._reading(lambda connection: _kept(connection, which, tuple(rows)))

    def by_id(self, message_id: str, recipient: str | None = None) -> Deferred[list[Kept]]:
        """One for each recipient, or for this one. Fails with :class:`NotFound`."""

        def job(connection: sqlite3.Connection) -> list[Kept]:
            which = "WHERE id=? AND recipient=coalesce(?, recipient) ORDER BY row"
            found = _kept(connection, which, (message_id, recipient))
            if not found:
                raise NotFound(f"no message {message_id!r} in the outbox")
            return found

        return self._reading(job)


def read_waiting(connection: sqlite3.Connection) -> list[Waiting]:
    """Once, at the start."""
    rows = connection.execute(
        "SELECT recipient, min(name), count(*), min(sent_at), max(row) FROM outbox WHERE status='queued' "
        "GROUP BY recipient"
    )
    return [Waiting(recipient, to.partition("~")[0], *rest) for recipient, to, *rest in rows]


def within_bytes(rows: list[Any], bytes_max: int) -> list[Any]:
    """The first rows, the second column of which says how long their texts are: at least one."""
    size = 0
    for number, row in enumerate(rows):
        size += row[1]
        if number and size > bytes_max:
            return rows[:number]
    return rows


def _is_run(rows: Sequence[int]) -> bool:
    """Whether none is missing between the first and the last, as in most batches."""
    return len(rows) > 1 and list(rows) == list(range(rows[0], rows[-1] + 1))


def _last_row(connection: sqlite3.Connection) -> int:
    (row,) = connection.execute("SELECT max(row) FROM outbox").fetchone()
    return int(row or 0)


_INSERT: Final = (
    "INSERT INTO outbox (recipient, id, name, type, message, sent_at, expires_at, status, changed_at, attempt) "
    "VALUES (?,?,?,?,?,?,?,'queued',?,?)"
)


def _accept(connection: sqlite3.Connection, drafts: Sequence[Draft], numbers: Sequence[int]) -> list[Verdict]:
    """`numbers`: of the attempts. All at once, as long as no id is there already."""
    rows = [
        (
            draft.recipient,
            draft.id,
            draft.to,
            draft.type,
            draft.message,
            draft.sent_at,
            draft.expires_at,
            draft.sent_at,
            number,
        )
        for draft, number in zip(drafts, numbers, strict=True)
    ]
    if len(rows) == 1:
        return [_accept_one(connection, drafts[0], rows[0])]
    connection.execute("SAVEPOINT drafts")
    try:
        connection.executemany(_INSERT, rows)
    except sqlite3.IntegrityError:
        connection.execute("ROLLBACK TO drafts")
        return [_accept_one(connection, draft, row) for draft, row in zip(drafts, rows, strict=True)]
    finally:
        connection.execute("RELEASE drafts")
    first = _last_row(connection) + 1 - len(rows)  # AUTOINCREMENT leaves no gap
    return [Accepted(_message(row, draft), True, Status.QUEUED, None) for row, draft in enumerate(drafts, first)]


def _accept_one(connection: sqlite3.Connection, draft: Draft, row: tuple[object, ...]) -> Verdict:
    cursor = connection.execute(f"{_INSERT} ON CONFLICT DO NOTHING", row)
    if cursor.rowcount:
        return Accepted(_message(cursor.lastrowid or 0, draft), True, Status.QUEUED, None)
    known = connection.execute(
        f"SELECT {_MESSAGE}, status, reason, attempt FROM outbox WHERE recipient=? AND id=?",  # noqa: S608
        (draft.recipient, draft.id),
    ).fetchone()
    message, status, reason = Message(*known[:7]), Status(known[7]), known[8]
    other_key = message.to.partition("~")[2] != draft.to.partition("~")[2]
    if other_key or (message.message, message.type) != (draft.message, draft.type):
        return IdReused(f"the id {draft.id!r} was used for another message to {message.to}")
    # The disk may have taken what it said it had not, and the job run again.
    return Accepted(message, known[9] == row[-1], status, reason)


def _message(row: int, draft: Draft) -> Message:
    return Message(row, draft.id, draft.to, draft.type, draft.message, draft.sent_at, draft.expires_at)


def _kept(connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> list[Kept]:
    rows = connection.execute(f"SELECT {_KEPT} FROM outbox {which}", values)  # noqa: S608
    return [
        Kept(row, recipient, id_, name, Status(status), sent_at, expires_at, changed_at, reason)
        for row, recipient, id_, name, status, sent_at, expires_at, changed_at, reason in rows
    ]
