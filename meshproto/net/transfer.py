"""All that a user's node keeps, as lines of JSON, and back: for other programs, for another machine, for later.

The first line says what this is, the last one how many there are, so that a file that was cut off is noticed. In
between each line is a row of the database: contacts first, then the outbox, the inbox, and what is remembered of
messages no longer kept. A message stands in its line as the JSON it is. The order is that of the keys, so two exports
of the same data are the same bytes.

Neither direction holds more than a line of it in memory.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from meshproto.core.envelope import check_message
from meshproto.core.identity import Identity, Record, verify
from meshproto.errors import BadState, MeshError
from meshproto.wire import SignedRecord, explain, fold

FORMAT: Final = 1
LINE_BYTES_MAX: Final = 1024 * 1024
"""The largest message is 256 KiB, and what stands beside it a few kilobytes."""
ROWS_PER_COMMIT: Final = 5000
"""While importing: what is not committed is in memory, in part, and each commit waits for the disk."""
BAD_LINES_MAX: Final = 20
"""What is shown of lines that do not read; of more it is said how many."""
_WHITE: Final = bytes.maketrans(b"\n\r", b"  ")
"""Within JSON these two are white space and nothing else: so a message is one line."""

Int = Annotated[int, Meta(ge=-(2**53), le=2**53)]
"""As far as all who read JSON agree on numbers; no message or record that a node takes goes beyond."""


class _Line(Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """`table`: whose columns the fields are; `order`: of its rows."""

    table: ClassVar[str] = ""
    order: ClassVar[str] = ""

    def check(self) -> None:
        """Raises :class:`MeshError` when it is nothing that a node would have kept."""


class Head(_Line, frozen=True, tag="export"):
    """The first line. `schema`: of the database that it was made of."""

    format: int
    schema: int


class Keys(_Line, frozen=True, tag="identity"):
    """The private keys: what stands in `keys.json`."""

    keys: Raw

    def check(self) -> None:
        Identity.load(bytes(self.keys))


class ContactLine(_Line, frozen=True, tag="contact"):
    table = "contacts"
    order = "name"

    name: str
    shown: str
    key: str
    record: str
    sig: str
    seq: Int
    first_seen: Int
    changed_at: Int
    verified_at: Int | None

    def check(self) -> None:
        _check_record(self.name, self.key, self.seq, self.record, self.sig)


class OfferedLine(_Line, frozen=True, tag="offered"):
    table = "offered"
    order = "name"

    name: str
    key: str
    record: str
    sig: str
    seq: Int
    seen_at: Int

    def check(self) -> None:
        _check_record(self.name, self.key, self.seq, self.record, self.sig)


class SeedLine(_Line, frozen=True, tag="seed"):
    table = "seeds"
    order = "address"

    address: str


class NumberLine(_Line, frozen=True, tag="number"):
    """How far a program has come with the inbox, and the sequence of the last record."""

    table = "numbers"
    order = "name"

    name: str
    value: Int


class OutLine(_Line, frozen=True, tag="out"):
    table = "outbox"
    order = "row"

    row: Annotated[int, Meta(ge=1, le=2**53)]
    recipient: str
    id: str
    name: str
    type: str
    message: Raw
    sent_at: Int
    expires_at: Int
    status: Literal["queued", "delivered", "expired", "refused", "cancelled"]
    changed_at: Int
    reason: str | None
    attempt: Int

    def check(self) -> None:
        check_message(bytes(self.message))


class InLine(_Line, frozen=True, tag="in"):
    table = "inbox"
    order = "cursor"

    cursor: Annotated[int, Meta(ge=1, le=2**53)]
    sender: str
    name: str
    key: str
    id: str
    type: str
    message: Raw
    sent_at: Int
    received_at: Int

    def check(self) -> None:
        check_message(bytes(self.message))


class SeenLine(_Line, frozen=True, tag="seen"):
    table = "seen"
    order = "row"

    row: Annotated[int, Meta(ge=1, le=2**53)]
    key: str
    id: str
    received_at: Int


class SequenceLine(_Line, frozen=True, tag="sequence"):
    """The highest number that was ever given: none is given twice."""

    table = "sqlite_sequence"
    order = "name"

    name: Literal["inbox", "outbox"]
    seq: Annotated[int, Meta(ge=0, le=2**53)]


class End(_Line, frozen=True, tag="end"):
    """The last line. `lines`: how many there are, with this one."""

    lines: int


ROWS: Final[tuple[type[_Line], ...]] = (
    ContactLine,
    OfferedLine,
    SeedLine,
    NumberLine,
    OutLine,
    InLine,
    SeenLine,
    SequenceLine,  # the last of the rows: whoever inserts a row sets these
)
_AnyLine = (
    Head | Keys | ContactLine | OfferedLine | SeedLine | NumberLine | OutLine | InLine | SeenLine | SequenceLine | End
)
_decoder: msgspec.json.Decoder[_AnyLine] = msgspec.json.Decoder(_AnyLine)
_encoder = msgspec.json.Encoder()


class BadLines(BadState):
    """Lines that do not read: `shown` names the first of them, `count` is how many there are."""

    def __init__(self, shown: list[str], count: int) -> None:
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        super().__init__("; ".join(shown) + more)
        self.shown = shown
        self.count = count


class Counts(NamedTuple):
    """What was brought over."""

    contacts: int = 0
    sent: int = 0
    received: int = 0
    identity: bool = False


# -- out ----------------------------------------------------------------------------------------------------------


def rows_in(connection: sqlite3.Connection) -> int:
    """How many lines :func:`export` will be, but for the first and the last."""
    counts = [connection.execute(f"SELECT count(*) FROM {kind.table}").fetchone()[0] for kind in ROWS]  # noqa: S608
    return sum(counts)


def export(connection: sqlite3.Connection, keys: bytes | None = None) -> Iterator[bytes]:
    """Every line with its newline. The connection's transaction is what makes them fit together. `keys`: what stands in
    `keys.json`, if that is to be told."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    lines = 2
    yield _encoder.encode(Head(FORMAT, schema)) + b"\n"
    if keys is not None:
        lines += 1
        yield _encoder.encode(Keys(Raw(keys.strip().translate(_WHITE)))) + b"\n"
    for kind in ROWS:
        names = kind.__struct_fields__
        for row in connection.execute(f"SELECT {', '.join(names)} FROM {kind.table} ORDER BY {kind.order}"):  # noqa: S608
            lines += 1
            yield _encoder.encode(kind(*(_shown(name, value) for name, value in zip(names, row, strict=True)))) + b"\n"
    yield _encoder.encode(End(lines)) + b"\n"


def _shown(name: str, value: Any) -> Any:
    return Raw(bytes(value).translate(_WHITE).strip(b" \t")) if name == "message" else value


# -- in -----------------------------------------------------------------------------------------------------------


class Import:
    """Into an empty database, line by line. :meth:`take` them all, then :meth:`finish`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._number = 0
        self._pending = 0
        self._bad: list[str] = []
        self._bad_count = 0
        self._ended: End | None = None
        self.identity: Identity | None = None
        self._counts = dict.fromkeys(("contacts", "outbox", "inbox"), 0)

    def take(self, line: bytes) -> None:
        """One line. What is wrong with it is kept for the end, so that all that is wrong can be told at once."""
        self._number += 1
        try:
            self._keep(self._read(line))
        except (MeshError, sqlite3.IntegrityError, sqlite3.OperationalError, OverflowError) as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._wrong(error.detail if isinstance(error, MeshError) else _clash(error))

    def finish(self) -> Counts:
        """Raises :class:`BadLines` when any of them was bad, or the end is missing: then nothing is to be kept."""
        if self._ended is None:
            self._number += 1
            self._wrong("the end is missing: the file was cut off, or is no export")
        if self._bad:
            raise BadLines(self._bad, self._bad_count)
        self._commit()
        counts = self._counts
        return Counts(counts["contacts"], counts["outbox"], counts["inbox"], self.identity is not None)

    def _read(self, line: bytes) -> _AnyLine:
        if len(line) > LINE_BYTES_MAX:
            raise BadState(f"longer than {LINE_BYTES_MAX} bytes")
        try:
            read = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
            raise BadState(explain(reason)) from None
        if (self._number == 1) != isinstance(read, Head):
            raise BadState("an export begins with its head, and has one" if self._number > 1 else "this is no export")
        if self._ended is not None:
            raise BadState("there is something after the end")
        read.check()
        return read

    def _keep(self, line: _AnyLine) -> None:
        match line:
            case Head():
                if line.format != FORMAT:
                    raise BadState(f"an export of format {line.format}: update meshproto")
            case End():
                self._ended = line
                if line.lines != self._number:
                    raise BadState(f"there were {line.lines} lines when this was written, and now there are others")
            case Keys():
                if self.identity is not None:
                    raise BadState("there is an identity already")
                self.identity = Identity.load(bytes(line.keys))
            case _:
                self._insert(line)

    def _insert(self, line: _Line) -> None:
        names = line.__struct_fields__
        values = [bytes(v) if isinstance(v, Raw) else v for v in (getattr(line, name) for name in names)]
        if not self._pending:
            self._connection.execute("BEGIN")
        self._pending += 1
        if isinstance(line, SequenceLine):
            self._continue_after(line)
        else:
            marks = ",".join("?" * len(names))
            self._connection.execute(f"INSERT INTO {line.table} ({', '.join(names)}) VALUES ({marks})", values)  # noqa: S608
        if line.table in self._counts:
            self._counts[line.table] += 1
        if self._pending >= ROWS_PER_COMMIT:
            self._commit()

    def _continue_after(self, line: SequenceLine) -> None:
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name=?", (line.name,)).fetchone()
        if found is not None and found[0] > line.seq:
            raise BadState(f"{line.name} has a number beyond {line.seq}")
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name=?", (line.name,))
        self._connection.execute("INSERT INTO sqlite_sequence VALUES (?,?)", (line.name, line.seq))

    def _commit(self) -> None:
        if self._pending:
            self._connection.execute("COMMIT")
        self._pending = 0

    def _wrong(self, why: str) -> None:
        self._bad_count += 1
        if len(self._bad) < BAD_LINES_MAX:
            self._bad.append(f"line {self._number}: {why}")


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newlines, out of pieces; of one that is too long so much that it is seen to be."""
    line = bytearray()
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for end in ended:
            line += end[: LINE_BYTES_MAX + 1]
            yield bytes(line[: LINE_BYTES_MAX + 1])
            line.clear()
        line = (line + rest)[: LINE_BYTES_MAX + 1]
    if line:
        yield bytes(line)


def _check_record(name: str, key: str, seq: int, record: str, sig: str) -> None:
    """A node trusts what it has on disk: what is brought to it must be what it would have verified."""
    said: Record = verify(SignedRecord(record, sig))
    if (fold(said.name), said.key, said.seq) != (name, key, seq):
        raise BadState(f"the record is not that of {name[:100]!r} with this key and sequence")


def _clash(error: Exception) -> str:
    return f"it is there already, or does not fit ({error})"
