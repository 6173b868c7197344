"""The history: what came and what was sent in one order, by conversation and by words. A database of its own beside the
node's, made from that one and read with it; where it is lost it is made again.

What people look at now and then costs those who send nothing: no row and no index is written here when a message is
sent or comes. :meth:`HistoryFile.catch_up` adds what has gathered since, some hundreds of messages in a few statements.
All of it runs in a thread; SQLite leaves the interpreter to others while it works.
"""

from __future__ import annotations

import re
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Raw

from meshproto.core.inbox import PAGE_BYTES_MAX, Correspondent, Received
from meshproto.core.queue import Status
from meshproto.errors import Unavailable
from meshproto.net.outbox_table import Kept

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE items (                        -- every message, in the order in which it was found here
    pos INTEGER PRIMARY KEY AUTOINCREMENT,
    peer TEXT NOT NULL,                     -- folded
    incoming INTEGER NOT NULL,
    row INTEGER NOT NULL                    -- in the node's inbox or outbox
);
CREATE INDEX items_peer ON items (peer, pos);
CREATE TABLE peers (
    peer TEXT PRIMARY KEY,
    last INTEGER NOT NULL,                  -- pos
    read INTEGER NOT NULL,                  -- pos up to which all has been read
    unread INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX peers_last ON peers (last);
CREATE TABLE progress (inbox INTEGER NOT NULL, outbox INTEGER NOT NULL, read INTEGER NOT NULL);
INSERT INTO progress VALUES (0, 0, -1);
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize="unicode61 remove_diacritics 2", prefix="2 3")
"""
PORTION_ROWS: Final = 500
"""Messages added at a time, from each side: some ten milliseconds."""
TEXT_CHARS_MAX: Final = 10_000
"""Of a message, what can be searched for: some pages of text. More is data."""
SEARCH_S: Final = 2.0
"""How long a search may take. Only words that are in hundreds of thousands of messages take so long."""
SNIPPET_WORDS: Final = 16
QUERY_CHARS_MAX: Final = 200
BUSY_S: Final = 1.0
PURGE_ROWS: Final = 1000
"""Messages looked at in one go, of whether the node still has them: a few milliseconds."""
_STEPS: Final = 10_000
"""Of SQLite's machine, between two looks at the clock."""

_WORD: Final = re.compile(r'"([^"]*)"?|(\S+)')
_TEXT: Final = (
    "substr(CASE WHEN substr(CAST({0}.message AS TEXT), 1, 1) = '\"' THEN json_extract(CAST({0}.message AS TEXT), '$') "
    f"ELSE CAST({{0}}.message AS TEXT) END, 1, {TEXT_CHARS_MAX})"
)


class Ends(NamedTuple):
    """The latest of the node's inbox and outbox that is known to be on disk."""

    cursor: int
    row: int


class Sent(NamedTuple):
    """One of the outbox, with what was sent."""

    kept: Kept
    type: str
    message: Raw


class Item(NamedTuple):
    """`said`: as it came, or as it was sent. `snippet`: where the words of a search were found, each between U+0002 and
    U+0003."""

    pos: int
    peer: str
    said: Received | Sent
    snippet: str | None = None


class Conversation(NamedTuple):
    """`last`: None when the message is no longer kept."""

    peer: str
    pos: int
    unread: int
    last: Item | None


class Conversations(NamedTuple):
    """The one with the latest message first. `next`: where to go on; None: there is no more."""

    conversations: list[Conversation]
    next: int | None


class Page(NamedTuple):
    """Oldest first. `before`, `after`: where to go on; None: there is no more."""

    items: list[Item]
    before: int | None
    after: int | None
    total: int


class Hits(NamedTuple):
    """Newest first. `next`: where to go on; None: there is no more."""

    items: list[Item]
    next: int | None


class HistoryFile:
    """`node`: the node's own database, as SQLite is told of it; it is only read."""

    def __init__(self, path: str | Path, node: str) -> None:
        """Raises :class:`Unavailable`."""
        self._path = path
        try:
            self._connection = self._open(node)
        except (sqlite3.DatabaseError, OSError) as reason:
            raise _unavailable(reason) from None

    def _open(self, node: str) -> sqlite3.Connection:
        try:
            return _connect(self._path, node)
        except sqlite3.DatabaseError:
            if not isinstance(self._path, Path):
                raise
        for suffix in ("", "-wal", "-shm"):  # it is damaged, or of another version: everything in it can be made again
            with suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").unlink()
        return _connect(self._path, node)

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        """From another thread: what is being done ends with :class:`Unavailable`."""
        self._connection.interrupt()

    # -- filling it ----------------------------------------------------------------------------------------------

    def catch_up(self, ends: Ends) -> int:
        """Add the next messages, up to `ends`; how many are left. Raises :class:`Unavailable`."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            inbox, outbox, read = connection.execute("SELECT inbox, outbox, read FROM progress").fetchone()
            if read < 0:  # it is new: what is there already was there to be read before
                read = ends.cursor
            upto = _portion(connection, Ends(inbox, outbox), ends)
            (before,) = connection.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name='items'"
            ).fetchone()
            connection.execute(
                "INSERT INTO items (peer, incoming, row) SELECT peer, incoming, row FROM ("
                "SELECT sender AS peer, 1 AS incoming, cursor AS row, received_at AS at FROM node.inbox "
                "WHERE cursor>? AND cursor<=? UNION ALL "
                "SELECT recipient, 0, row, sent_at FROM node.outbox WHERE row>? AND row<=?) ORDER BY at, incoming, row",
                (inbox, upto.cursor, outbox, upto.row),
            )
            connection.execute(
                "INSERT INTO peers "
                "SELECT peer, max(pos), coalesce(max(CASE WHEN incoming AND row<=:read THEN pos END), 0), "
                "sum(incoming AND row>:read) FROM items WHERE pos>:before GROUP BY peer "
                "ON CONFLICT (peer) DO UPDATE SET last=excluded.last, read=max(read, excluded.read), "
                "unread=unread+excluded.unread",
                {"read": read, "before": before},
            )
            connection.execute(
                f"INSERT INTO words (rowid, text) SELECT pos, coalesce({_TEXT.format('i')}, {_TEXT.format('o')}) "  # noqa: S608
                "FROM items LEFT JOIN node.inbox AS i ON incoming AND i.cursor=items.row "
                "LEFT JOIN node.outbox AS o ON NOT incoming AND o.row=items.row WHERE pos>?",
                (before,),
            )
            connection.execute("UPDATE progress SET inbox=?, outbox=?, read=?", (*upto, read))
            connection.execute("COMMIT")
        return ends.cursor - upto.cursor + ends.row - upto.row

    def purge(self, after: int) -> int | None:
        """Forget what the node keeps no longer of some messages after a pos. Where to go on; None: that was all."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            looked_at = connection.execute(
                "SELECT pos, CASE WHEN incoming THEN EXISTS (SELECT 1 FROM node.inbox WHERE cursor=items.row) "
                "ELSE EXISTS (SELECT 1 FROM node.outbox AS o WHERE o.row=items.row) END "
                "FROM items WHERE pos>? ORDER BY pos LIMIT ?",
                (after, PURGE_ROWS),
            ).fetchall()
            gone = [(pos,) for pos, is_kept in looked_at if not is_kept]
            connection.executemany("DELETE FROM items WHERE pos=?", gone)
            connection.executemany("DELETE FROM words WHERE rowid=?", gone)
            connection.execute("DELETE FROM peers WHERE NOT EXISTS (SELECT 1 FROM items WHERE peer=peers.peer)")
            connection.execute("COMMIT")
        return looked_at[-1][0] if len(looked_at) == PURGE_ROWS else None

    # -- reading it ----------------------------------------------------------------------------------------------

    def conversations(self, before: int | None, limit: int) -> Conversations:
        """At most so many, and :data:`PAGE_BYTES_MAX` of text, as in each of these. Raises :class:`Unavailable`, as
        each of these."""
        with self._reading() as connection:
            peers = connection.execute(
                "SELECT peer, last, unread FROM peers WHERE last<? ORDER BY last DESC LIMIT ?", (_end(before), limit)
            ).fetchall()
            fitting = _fitting(connection, [pos for _, pos, _ in peers])
            last = {item.pos: item for item in _items(connection, fitting)}
            found = [Conversation(peer, pos, unread, last.get(pos)) for peer, pos, unread in peers[: len(fitting)]]
            more = len(found) == limit or len(found) < len(peers)
            return Conversations(found, found[-1].pos if more else None)

    def page(self, peer: str, before: int | None, after: int | None, around: int | None, limit: int) -> Page:
        """Of one conversation: what is on both sides of a pos, or just after one, or just before one; else the
        latest."""
        with self._reading() as connection:
            older = "SELECT pos FROM items WHERE peer=? AND pos<? ORDER BY pos DESC LIMIT ?"
            newer = "SELECT pos FROM items WHERE peer=? AND pos>? ORDER BY pos LIMIT ?"
            here = around if around is not None else after if after is not None else _end(before)
            found: list[int] = []
            if around is not None or after is None:
                half = limit if around is None else limit // 2
                found += _column(connection.execute(older, (peer, here, half)))[::-1]
            if around is not None or after is not None:
                start = here if around is None else here - 1
                found += _column(connection.execute(newer, (peer, start, limit - len(found))))
            found = sorted(_fitting(connection, _nearest(found, here)))
            first, last = (found[0], found[-1]) if found else (_end(before), after or 0)
            (more_before,) = connection.execute(f"SELECT EXISTS ({older})", (peer, first, 1)).fetchone()
            (more_after,) = connection.execute(f"SELECT EXISTS ({newer})", (peer, last, 1)).fetchone()
            (total,) = connection.execute("SELECT count(*) FROM items WHERE peer=?", (peer,)).fetchone()
            items = _items(connection, found)
            return Page(items, first if more_before else None, last if more_after else None, total)

    def read_up_to(self, peer: str, pos: int) -> int:
        """All of a conversation up to there has been read; how much is left unread."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE peers SET read=max(read, min(last, :pos)), unread=(SELECT count(*) FROM items "
                "WHERE items.peer=:peer AND incoming AND pos>max(peers.read, :pos)) WHERE peer=:peer",
                {"peer": peer, "pos": pos},
            )
            unread = connection.execute("SELECT unread FROM peers WHERE peer=?", (peer,)).fetchone()
            connection.execute("COMMIT")
            return int(unread[0]) if unread else 0

    def search(self, query: str, peer: str | None, before: int | None, limit: int) -> Hits:
        """Messages that have all the words of a query; none for one without words."""
        wanted = expression(query)
        if not wanted:
            return Hits([], None)
        with self._reading(SEARCH_S) as connection:
            found = connection.execute(
                "SELECT pos, snippet(words, 0, char(2), char(3), '…', ?) FROM words JOIN items ON pos=words.rowid "
                "WHERE words MATCH ? AND words.rowid<? AND peer=coalesce(?, peer) ORDER BY words.rowid DESC LIMIT ?",
                (SNIPPET_WORDS, wanted, _end(before), peer, limit),
            ).fetchall()
            snippets = dict(found)
            fitting = _fitting(connection, list(snippets))
            items = [item._replace(snippet=snippets[item.pos]) for item in _items(connection, fitting)]
            return Hits(items[::-1], fitting[-1] if len(found) == limit or len(fitting) < len(found) else None)

    @contextmanager
    def _reading(self, seconds: float | None = None) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        if seconds is not None:
            ends_at = time.monotonic() + seconds
            connection.set_progress_handler(lambda: time.monotonic() > ends_at, _STEPS)
        try:
            yield connection
        except sqlite3.Error as reason:
            if getattr(reason, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise Unavailable(f"it took longer than {SEARCH_S:g} s: give more words") from None
            raise _unavailable(reason) from None
        finally:
            if seconds is not None:
                connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def expression(query: str) -> str:
    """What FTS5 is asked (https://sqlite.org/fts5.html#full_text_query_syntax): all words, of which the last may be
    unfinished; what is between quotes as it stands. Empty when there are no words."""
    parts = [(phrase or word, bool(word)) for phrase, word in _WORD.findall(query.replace("\0", " "))]
    wanted = [f'"{text.replace(chr(34), "")}"' for text, _ in parts if any(map(str.isalnum, text))]
    if wanted and parts[-1][1] and not query[-1].isspace() and wanted[-1] == f'"{parts[-1][0].replace(chr(34), "")}"':
        wanted[-1] += "*"
    return " ".join(wanted)


def _connect(path: str | Path, node: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=str(path).startswith("file:")
    )
    try:
        # A message may have half a character in it, as JSON may.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            connection.executescript(f"BEGIN; {SCHEMA}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif found != SCHEMA_VERSION or connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("of another version, or damaged")
        connection.execute("ATTACH ? AS node", (node,))
    except BaseException:
        connection.close()
        raise
    return connection


def _portion(connection: sqlite3.Connection, done: Ends, ends: Ends) -> Ends:
    """How far the next portion goes. What was sent and what came is told in the order of time, so neither side may be
    ahead of what is left of the other. (After a clock was set one side may seem ahead: then both go on as they are.)"""
    inbox = _until(
        connection, "SELECT cursor, received_at FROM node.inbox WHERE cursor>? AND cursor<=?", done[0], ends[0]
    )
    outbox = _until(connection, "SELECT row, sent_at FROM node.outbox WHERE row>? AND row<=?", done[1], ends[1])
    last_at = min((times[-1][1] for times in (inbox, outbox) if len(times) == PORTION_ROWS), default=None)

    def end(times: list[tuple[int, int]], upto: int) -> int:
        if last_at is None:
            return upto
        return next((row - 1 for row, at in times if at > last_at), times[-1][0] if times else upto)

    portion = Ends(end(inbox, ends.cursor), end(outbox, ends.row))
    if portion == done:
        return Ends(inbox[-1][0] if inbox else ends.cursor, outbox[-1][0] if outbox else ends.row)
    return portion


def _until(connection: sqlite3.Connection, select: str, after: int, upto: int) -> list[tuple[int, int]]:
    return connection.execute(f"{select} ORDER BY 1 LIMIT {PORTION_ROWS}", (after, upto)).fetchall()


def _items(connection: sqlite3.Connection, positions: Sequence[int]) -> list[Item]:
    """Those that the node still has, in order."""
    among = f"pos IN ({','.join('?' * len(positions))})"
    came = connection.execute(
        "SELECT pos, peer, cursor, id, name, key, type, message, sent_at, received_at "  # noqa: S608
        f"FROM items JOIN node.inbox AS i ON i.cursor=items.row WHERE incoming AND {among}",
        positions,
    )
    items = [
        Item(pos, peer, Received(cursor, id_, Correspondent(name, key), type_, Raw(message), sent_at, received_at))
        for pos, peer, cursor, id_, name, key, type_, message, sent_at, received_at in came
    ]
    sent = connection.execute(
        "SELECT pos, peer, o.row, recipient, id, name, status, sent_at, expires_at, changed_at, reason, type, message "  # noqa: S608
        f"FROM items JOIN node.outbox AS o ON o.row=items.row WHERE NOT incoming AND {among}",
        positions,
    )
    items += [
        Item(pos, peer, Sent(Kept(row, recipient, id_, name, Status(status), *times_and_reason), type_, Raw(message)))
        for pos, peer, row, recipient, id_, name, status, *times_and_reason, type_, message in sent
    ]
    return sorted(items)


def _nearest(positions: list[int], here: int) -> list[int]:
    """In the order of how many of them lie between: what is left of their beginning has no gaps."""
    at = bisect_left(positions, here)
    return [positions[index] for index in sorted(range(len(positions)), key=lambda index: abs(index - at))]


def _fitting(connection: sqlite3.Connection, positions: list[int]) -> list[int]:
    """The first of them, whose texts are small enough for one page: one at least."""
    sizes = dict(
        connection.execute(
            "SELECT pos, coalesce(length(i.message), length(o.message)) "  # noqa: S608
            "FROM items LEFT JOIN node.inbox AS i ON incoming AND i.cursor=items.row "
            "LEFT JOIN node.outbox AS o ON NOT incoming AND o.row=items.row "
            f"WHERE pos IN ({','.join('?' * len(positions))})",
            positions,
        ).fetchall()
    )
    size = 0
    for number, pos in enumerate(positions):
        size += sizes.get(pos) or 0
        if number and size > PAGE_BYTES_MAX:
            return positions[:number]
    return positions


def _column(cursor: sqlite3.Cursor) -> list[Any]:
    return [value for (value,) in cursor]


def _end(before: int | None) -> int:
    return 2**62 if before is None else before


def _unavailable(reason: Exception) -> Unavailable:
    return Unavailable(f"the history cannot be read: {reason} (history.db)", retry_after_s=BUSY_S)
